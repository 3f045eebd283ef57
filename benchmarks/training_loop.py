"""Images a second of the training loop against a bare PyTorch loop, step by step in one run.

    python -m benchmarks.training_loop [--steps 300] [--threads 1]

After each step of ours, a bare loop takes one on the same batch with a network, augmentation,
optimiser and schedule of the same kind, so that whatever else the machine does falls on both. Ours
is everything from the end of one bare step to the start of the next: Lightning, logging, the norms
of gradients. What comes between two epochs (the diagnosis of the validation images, two
checkpoints) is told as a share of an epoch of 55,000 images. Pixels are random: the time does not
depend on them.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch.nn import functional

from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.data import augmentation as augment
from training.data.batches import Batch, laid_out
from training.data.dataset import DataSet, DatasetDefaults, Split
from training.fitting.loop import architecture, fit
from training.network.classifier import build

_BATCH = 128
_SHIFT = 2
_RATE = 6e-3
_EPOCHS = 2
_EPOCH_IMAGES = 55_000
_VALIDATION_IMAGES = 5_000
_WARM_UP = 5  # steps


class Bare:
    """The loop as a few lines of PyTorch."""

    def __init__(self, config: TrainingConfig, data: DataSet, steps: int) -> None:
        network = build(architecture(config, data), [0.5], [0.3])
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._change = augment.build("flip-crop", _SHIFT)
        weights = self._network.parameters()
        self._optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.05, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=_RATE, total_steps=steps
        )
        self._network.train()

    def step(self, batch: Batch) -> None:
        """Take one."""
        images, labels = batch
        self._optimizer.zero_grad()
        logits = self._network(laid_out(self._change(images)))
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()


class Turns(Callback):
    """Lets the bare loop take a step after each of ours, and times both; seconds."""

    def __init__(self, bare: Bare) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.between_epochs: list[float] = []
        self._bare = bare
        self._began: float | None = None

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Note what our step took; take a bare one."""
        ended = time.perf_counter()
        if self._began is not None:
            self.ours.append(ended - self._began)
        start = time.perf_counter()
        self._bare.step(batch)
        self._began = time.perf_counter()
        if len(self.ours) == len(self.bare) + 1:
            self.bare.append(self._began - start)

    def on_train_epoch_start(self, *_: Any) -> None:
        """The first step of an epoch has waited for the end of the one before."""
        if self._began is not None:
            self.between_epochs.append(time.perf_counter() - self._began)
        self._began = None


def main(arguments: list[str]) -> None:
    """Train, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=300, help="of each loop")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = parser.parse_args(arguments)
    logging.getLogger("training").setLevel(logging.ERROR)
    data = _data(options.steps // _EPOCHS * _BATCH)
    config = TrainingConfig(
        epochs=_EPOCHS, learning_rate=_RATE, dropout_samples=1, threads=options.threads
    )
    torch.set_num_threads(options.threads)
    turns = Turns(Bare(config, data, options.steps + 1))
    with tempfile.TemporaryDirectory() as run:
        fit(config, data, Path(run), resume=False, watchers=[turns])
    bare, ours = np.array(turns.bare[_WARM_UP:]), np.array(turns.ours[_WARM_UP:])
    low, middle, high = np.quantile(bare / ours, [0.25, 0.5, 0.75])
    _print(
        f"{len(ours)} steps each: bare {_BATCH / median(bare):.0f} images/s, ours "
        f"{_BATCH / median(ours):.0f} images/s, ratio {median(bare) / median(ours):.3f}; "
        f"pair by pair {middle:.3f} (quartiles {low:.3f} and {high:.3f})"
    )
    epoch = median(ours) * _EPOCH_IMAGES / _BATCH
    between = median(turns.between_epochs)
    _print(f"between two epochs {between:.2f} s, {between / (between + epoch):.1%} of an epoch")


def _data(images: int) -> DataSet:
    generator = np.random.default_rng(0)

    def part(count: int) -> Split:
        pixels = generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
        return Split(pixels, generator.integers(0, 10, count))

    return DataSet(
        name="random pixels",
        class_names=tuple("0123456789"),
        input=InputSpec(channels=1, height=28, width=28, resize="pad"),
        train=part(images),
        validation=part(_VALIDATION_IMAGES),
        test=part(10),
        recipe=DatasetDefaults(1, _BATCH, "flip-crop", _SHIFT),
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
