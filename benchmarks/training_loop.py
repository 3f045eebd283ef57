"""Images a second of the training loop against a bare PyTorch loop, side by side in one run.

    python -m benchmarks.training_loop [--images 20000] [--pairs 5] [--threads 2]

Both train the `cnn` on the same images with the same batch, augmentation, optimiser and schedule.
The bare loop does nothing else; ours also logs, watches gradients and dead units and writes two
checkpoints an epoch. An epoch's time is the difference between a run of three and one of one, so
that setting up counts in neither. The second figure is what the diagnosis adds to a validation.
Pixels are random: the time does not depend on them.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional

from model.network import Classifier, build
from model.preprocessing import InputSpec
from training import augment
from training.batches import Batches, laid_out, pixels
from training.config import TrainingConfig
from training.data import DataSet, Part, Recipe
from training.diagnosis import diagnose
from training.experiments.trial import measure
from training.fit import architecture, fit

_BATCH = 128
_SHIFT = 2
_RATE = 6e-3
_VALIDATION_IMAGES = 5_000


def main(arguments: list[str]) -> None:
    """Time the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=20_000, help="training images an epoch")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each loop")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    options = parser.parse_args(arguments)
    logging.getLogger("training").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    data = _data(options.images)
    ratios = []
    for _ in range(options.pairs):
        bare, ours = _epoch_seconds(_bare, data), _epoch_seconds(_ours, data)
        ratios.append(bare / ours)
        _print(
            f"bare {options.images / bare:8.0f} images/s, ours {options.images / ours:8.0f} "
            f"images/s, ratio {bare / ours:.3f}"
        )
    _print(f"median ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    shares = [_diagnosis_share(data) for _ in range(options.pairs)]
    _print(f"diagnosis adds {median(shares):.0%} to a validation")


def _data(images: int) -> DataSet:
    generator = np.random.default_rng(0)

    def part(count: int) -> Part:
        pixels = generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
        return Part(pixels, generator.integers(0, 10, count))

    return DataSet(
        name="random pixels",
        class_names=tuple("0123456789"),
        input=InputSpec(channels=1, height=28, width=28, resize="pad"),
        train=part(images),
        validation=part(10),
        test=part(10),
        recipe=Recipe(1, _BATCH, "flip-crop", _SHIFT),
    )


def _epoch_seconds(train: Callable[[DataSet, int], None], data: DataSet) -> float:
    seconds = []
    for epochs in (1, 3):
        start = time.perf_counter()
        train(data, epochs)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / 2


def _config(epochs: int) -> TrainingConfig:
    return TrainingConfig(epochs=epochs, learning_rate=_RATE, dropout_samples=1)


def _ours(data: DataSet, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as run:
        fit(_config(epochs), data, Path(run), resume=False)


def _bare(data: DataSet, epochs: int) -> None:
    network = _network(data)
    change = augment.build("flip-crop", _SHIFT)
    batches = Batches(data.train, _BATCH, torch.randperm)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_RATE, total_steps=epochs * len(batches)
    )
    network.train()
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(laid_out(change(images))), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _network(data: DataSet) -> Classifier:
    network: Classifier = build(architecture(_config(1), data), [0.5], [0.3])
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _diagnosis_share(data: DataSet) -> float:
    """Return the extra time of a watched validation over that of a plain one."""
    network, part = _network(data), data.train.take(np.arange(_VALIDATION_IMAGES))
    start = time.perf_counter()
    measure(network, part)
    between = time.perf_counter()
    diagnose(network, pixels(part))
    return (time.perf_counter() - between) / (between - start) - 1


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
