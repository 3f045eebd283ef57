"""What the tests of training share: hand-made networks and hand-written findings."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from model.bundle.architecture import Architecture
from model.images.preprocessing import InputSpec
from model.uncertainty.summary import summarise
from training.data.dataset import DataSet, DatasetDefaults, Split
from training.evaluation.metrics import Answers, Evaluation, confusion, figures, per_class
from training.fitting.diagnostics import Epoch, LayerHealth
from training.fitting.loop import TrainResult
from training.network.classifier import Classifier, Head

PIXEL = InputSpec(channels=1, height=4, width=4, resize="pad")


def classifier(trunk: nn.Sequential, widths: Sequence[int], dropout: float = 0.5) -> Classifier:
    """Put a head of these widths behind a trunk; dropout before each of its layers but the last."""
    architecture = Architecture(dropout=dropout, classes=widths[-1], input=PIXEL)
    return Classifier(trunk, Head(widths, architecture, dropouts=max(1, len(widths) - 2)))


def one_pixel(
    weights: Sequence[float], biases: Sequence[float], activation: nn.Module | None = None
) -> Classifier:
    """A network whose unit i receives weights[i] * pixel + biases[i] of images [N, 1, 1, 1]."""
    torch.manual_seed(0)  # for the head's weights
    dense = nn.Linear(1, len(weights))
    with torch.no_grad():
        dense.weight.copy_(torch.tensor(weights)[:, None])
        dense.bias.copy_(torch.tensor(biases))
    trunk = nn.Sequential(nn.Flatten(), dense, activation or nn.ReLU())
    return classifier(trunk, [len(weights), 2])


def health(
    name: str = "dense 1",
    *,
    units: int = 100,
    images: int = 1_000,
    dead: int = 0,
    always_on: int = 0,
    silenced_by_bias: int = 0,
    saturated: float | None = None,
) -> LayerHealth:
    """What a diagnosis would say of a layer; its first units are the dead ones."""
    return LayerHealth(
        name=name,
        units=units,
        images=images,
        dead_units=tuple(range(dead)),
        nearly_dead=0,
        always_on=always_on,
        silenced_by_bias=silenced_by_bias,
        sparsity=0.5,
        saturated=saturated,
    )


CLASS_NAMES = ("<script>alert(1)</script>", "a|b", "$x_$ ![a](b.png) *s* [l](//e) `c` ends\\")


@pytest.fixture(scope="session")
def pictures() -> DataSet:
    """Random images of three classes with names that would do harm as HTML or Markdown."""
    generator = np.random.default_rng(0)

    def part(count: int) -> Split:
        images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
        return Split(images, np.arange(count) % len(CLASS_NAMES))

    return DataSet(
        name="pictures",
        class_names=CLASS_NAMES,
        input=PIXEL,
        train=part(30),
        validation=part(12),
        test=part(24),
        recipe=DatasetDefaults(1, 6, "none", shift=0),
    )


@pytest.fixture(scope="session")
def evaluation(pictures: DataSet) -> Evaluation:
    """Random answers on the test images, measured."""
    generator = np.random.default_rng(1)
    labels = pictures.test.labels
    plain, *sampled = generator.dirichlet(np.ones(len(CLASS_NAMES)), (9, len(labels)))
    given = Answers(plain, summarise(np.log(np.stack(sampled, axis=1)).astype(np.float32)))
    both = figures(plain, labels) | {
        "mc_dropout": {"samples": 64, "seed": 0, **figures(given.mean_probabilities, labels)},
    }
    metrics = {
        "images": len(labels),
        **both,
        "uncalibrated": both,
        "per_class": per_class(plain, labels, CLASS_NAMES),
        "confusion_matrix": confusion(plain, labels).tolist(),
    }
    return Evaluation(given, given, labels, metrics)


def course(layers: int, epochs: int, saturated: float | None = None) -> TrainResult:
    """A run of some epochs: losses fall, units die or saturate, gradients shrink."""
    names = [f"dense {index + 1}" for index in range(layers)]

    def moment(epoch: int) -> tuple[LayerHealth, ...]:
        share = None if saturated is None else min(1.0, saturated * epoch)
        dead = 0 if saturated is not None else 3 * epoch
        return tuple(health(name, dead=dead, saturated=share) for name in names)

    norms = [dict.fromkeys([*names, "output"], 1 / epoch) for epoch in range(1, epochs + 1)]
    seen = [
        Epoch(layers=moment(index + 1), gradient_norms=gradient)
        for index, gradient in enumerate(norms)
    ]
    history = [
        {
            "train_loss": 2 / epoch,
            "validation_loss": 3 / epoch,
            "validation_accuracy": 1 - 1 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]
    network = classifier(nn.Sequential(nn.Flatten()), [16, 3])
    return TrainResult(network, history, moment(0), seen, moment(epochs))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def norms(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    lengths: torch.Tensor = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    return lengths.double()
