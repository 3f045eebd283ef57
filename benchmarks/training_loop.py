"""Compares the images per second of the training loop with a bare PyTorch loop, step by step.

    python -m benchmarks.training_loop [--steps 300] [--threads 1]

After each step of our training loop, a bare loop takes a step on the same batch with the same kind
of network, augmentation, optimizer and schedule, so that other load on the machine affects both.
The time of our step is everything from the end of one bare step to the start of the next:
Lightning, logging, gradient norms. The time between two epochs (diagnostics on the validation
images, two checkpoints) is reported as a share of an epoch of 55,000 images. The pixels are random,
since the time does not depend on them.
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
from training.data.augmentation import build_augmentation
from training.data.batches import Batch, to_channels_last
from training.data.dataset import Dataset, DatasetDefaults, Split
from training.fitting.training_loop import describe_architecture, fit
from training.network.classifier import build_classifier

BATCH_SIZE = 128
_SHIFT = 2
_RATE = 6e-3
EPOCHS = 2
_EPOCH_IMAGES = 55_000
_VALIDATION_IMAGES = 5_000
_WARM_UP = 5  # steps


class BareLoop:
    """The training step in a few lines of PyTorch."""

    def __init__(self, config: TrainingConfig, data: Dataset, steps: int) -> None:
        network = build_classifier(describe_architecture(config, data), [0.5], [0.3])
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._augment = build_augmentation("flip-crop", _SHIFT)
        weights = self._network.parameters()
        self._optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.05, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=_RATE, total_steps=steps
        )
        self._network.train()

    def step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch."""
        images, labels = batch
        self._optimizer.zero_grad()
        logits = self._network(to_channels_last(self._augment(images)))
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()


class AlternatingSteps(Callback):
    """Takes a step of the bare loop after each of our steps, and times both, in seconds."""

    def __init__(self, bare_loop: BareLoop) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.between_epochs: list[float] = []
        self._bare_loop = bare_loop
        self._step_start: float | None = None

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Record the time of our step, then take and time a bare step."""
        end = time.perf_counter()
        if self._step_start is not None:
            self.ours.append(end - self._step_start)
        start = time.perf_counter()
        self._bare_loop.step(batch)
        self._step_start = time.perf_counter()
        if len(self.ours) == len(self.bare) + 1:
            self.bare.append(self._step_start - start)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Record the time between two epochs, which would otherwise count as a step."""
        if self._step_start is not None:
            self.between_epochs.append(time.perf_counter() - self._step_start)
        self._step_start = None


def main(arguments: list[str]) -> None:
    """Train, time both loops, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=300, help="steps of each loop")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = parser.parse_args(arguments)
    logging.getLogger("training").setLevel(logging.ERROR)
    data = random_images(options.steps // EPOCHS * BATCH_SIZE)
    config = TrainingConfig(
        epochs=EPOCHS, learning_rate=_RATE, dropout_samples=1, threads=options.threads
    )
    torch.set_num_threads(options.threads)
    timing = AlternatingSteps(BareLoop(config, data, options.steps + 1))
    with tempfile.TemporaryDirectory() as run:
        fit(config, data, Path(run), resume=False, callbacks=[timing])
    bare, ours = np.array(timing.bare[_WARM_UP:]), np.array(timing.ours[_WARM_UP:])
    low, middle, high = np.quantile(bare / ours, [0.25, 0.5, 0.75])
    _print(
        f"{len(ours)} steps each: bare {BATCH_SIZE / median(bare):.0f} images/s, ours "
        f"{BATCH_SIZE / median(ours):.0f} images/s, ratio {median(bare) / median(ours):.3f}; "
        f"pair by pair {middle:.3f} (quartiles {low:.3f} and {high:.3f})"
    )
    epoch = median(ours) * _EPOCH_IMAGES / BATCH_SIZE
    between = median(timing.between_epochs)
    _print(f"between two epochs {between:.2f} s, {between / (between + epoch):.1%} of an epoch")


def random_images(images: int) -> Dataset:
    """Return random pixels in the format of MNIST."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
        return Split(pixels, generator.integers(0, 10, count))

    return Dataset(
        name="random pixels",
        class_names=tuple("0123456789"),
        input=InputSpec(channels=1, height=28, width=28, resize="pad"),
        train=split(images),
        validation=split(_VALIDATION_IMAGES),
        test=split(10),
        defaults=DatasetDefaults(1, BATCH_SIZE, "flip-crop", _SHIFT),
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
