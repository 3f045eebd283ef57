"""Compares the gradients of the shards of two processes with those of the whole batch, in float64.

Run by `launch`; ends with status 0 if they agree, else with AssertionError.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.bundle.architecture_description import Architecture
from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.data.augmentation import random_affine
from training.data.shard import WHOLE, Shard
from training.distributed.launcher import find_processes
from training.distributed.process_group import mean_over_processes
from training.distributed.synchronised_layers import SynchronisedLayers
from training.fitting.lightning_module import ClassifierModule
from training.network.classifier import build_classifier

IMAGES, CLASSES = 12, 4


def module(shard: Shard) -> ClassifierModule:
    """Return the default network with dropout, augmentation and unequal class weights."""
    torch.manual_seed(0)
    spec = InputSpec(channels=1, height=8, width=8, resize="pad")
    network = build_classifier(Architecture(dropout=0.5, classes=CLASSES, input=spec))
    weights = np.arange(1, CLASSES + 1, dtype=np.float32)

    def augment(images: Tensor) -> Tensor:
        return random_affine(images / 255, 1.0, shard).double()

    made = ClassifierModule(
        network, CLASSES, augment, dropout_samples=4, class_weights=weights
    ).double()
    made.log = lambda *_, **__: None  # type: ignore[method-assign]
    return made


def gradients(shard: Shard, prepare: Callable[[ClassifierModule], object]) -> list[Tensor]:
    """Return the gradients of all weights, then the running statistics."""
    made = module(shard)
    prepare(made)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 1, 8, 8), generator=generator).byte()
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    torch.manual_seed(2)
    rows = shard.rows(IMAGES)
    made.training_step((images[rows], labels[rows]), 0).backward()  # type: ignore[no-untyped-call]
    grads = [each.grad for each in made.parameters() if each.grad is not None]
    return [*grads, *(each for each in made.network.buffers() if each.is_floating_point())]


if __name__ == "__main__":
    processes = find_processes(TrainingConfig())
    whole = gradients(WHOLE, lambda _: None)
    assert len(whole) > 20
    layers = SynchronisedLayers(processes.shard)
    with processes.connected():
        shards = gradients(processes.shard, layers.apply)
        for ours, expected in zip(shards, whole, strict=True):
            torch.testing.assert_close(mean_over_processes(ours), expected, rtol=1e-8, atol=1e-10)
