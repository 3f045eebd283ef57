"""Shared by the tests of training: small networks, diagnostics and evaluations made by hand."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from model.bundle.architecture_description import Architecture
from model.images.preprocessing import InputSpec
from tests.sample_summaries import summarise
from training.data.dataset import Dataset, DatasetDefaults, Split
from training.evaluation.metrics import (
    Answers,
    Evaluation,
    confusion_counts,
    per_class_metrics,
    prediction_metrics,
)
from training.evaluation.metrics_schema import SplitMetrics
from training.fitting.training_loop import TrainResult
from training.fitting.unit_diagnostics import EpochDiagnostics, LayerHealth
from training.network.classifier import Classifier, Head


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Let torch's exporter keep its operators from one graph to the next.

    It parses the source of some 500 functions for every graph, which is half of the time of a small
    one. Trainings in processes of their own leave the exporter as it is.
    """
    with pytest.MonkeyPatch.context() as patch:
        once = staticmethod(cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", once)
        yield


PIXEL = InputSpec(channels=1, height=4, width=4, resize="pad")


def classifier(trunk: nn.Sequential, widths: Sequence[int], dropout: float = 0.5) -> Classifier:
    """Return `trunk` with a head; all its layers but the last, at least one, have dropout."""
    architecture = Architecture(dropout=dropout, classes=widths[-1], input=PIXEL)
    return Classifier(trunk, Head(widths, architecture, dropout_count=max(1, len(widths) - 2)))


def one_pixel(
    weights: Sequence[float], biases: Sequence[float], activation: nn.Module | None = None
) -> Classifier:
    """Return a network for images [N, 1, 1, 1]; unit i gets weights[i] * pixel + biases[i]."""
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
    """Return the health of a layer whose first `dead` units are dead."""
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
def dataset() -> Dataset:
    """Random images of three classes with names that are unsafe as HTML or Markdown."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
        return Split(images, np.arange(count) % len(CLASS_NAMES))

    return Dataset(
        name="pictures",
        class_names=CLASS_NAMES,
        input=PIXEL,
        train=split(30),
        validation=split(12),
        test=split(24),
        defaults=DatasetDefaults(1, 6, "none", shift=0),
    )


@pytest.fixture(scope="session")
def evaluation(dataset: Dataset) -> Evaluation:
    """Random answers on the test images, measured."""
    generator = np.random.default_rng(1)
    labels = dataset.test.labels
    plain, *sampled = generator.dirichlet(np.ones(len(CLASS_NAMES)), (9, len(labels)))
    given = Answers(plain, summarise(np.log(np.stack(sampled, axis=1)).astype(np.float32)))
    both = prediction_metrics(given, labels)
    metrics: SplitMetrics = {
        "images": len(labels),
        **both,
        "uncalibrated": both,
        "per_class": per_class_metrics(plain, labels, CLASS_NAMES),
        "confusion_matrix": confusion_counts(plain, labels).tolist(),
    }
    return Evaluation(given, given, labels, metrics)


def train_result(layers: int, epochs: int, saturated: float | None = None) -> TrainResult:
    """Return a run in which losses fall, units die or saturate, and gradients shrink."""
    names = [f"dense {index + 1}" for index in range(layers)]

    def layers_after(epoch: int) -> tuple[LayerHealth, ...]:
        share = None if saturated is None else min(1.0, saturated * epoch)
        dead = 0 if saturated is not None else 3 * epoch
        return tuple(health(name, dead=dead, saturated=share) for name in names)

    norms = [dict.fromkeys([*names, "output"], 1 / epoch) for epoch in range(1, epochs + 1)]
    diagnostics = [
        EpochDiagnostics(layers=layers_after(index + 1), gradient_norms=gradient)
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
    last = layers_after(epochs)
    return TrainResult(network, history, layers_after(0), diagnostics, last, last)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have equal parameters and buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def weight_norms(layer: nn.Module) -> torch.Tensor:
    """Return the L2 norm of each unit's incoming weights: float64 [units]."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    lengths: torch.Tensor = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    return lengths.double()
