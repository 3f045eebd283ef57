"""Exported networks with fresh weights: real graphs, but untrained predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle.architecture_description import Architecture
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor
from training.export.to_onnx import export_graphs
from training.network.classifier import Classifier, build_classifier

DIGIT = InputSpec(channels=1, height=8, width=8, resize="pad")


@dataclass(frozen=True)
class Exported:
    """A network, its exported graphs in a folder, their predictor, and 48 random images."""

    network: Classifier
    folder: Path
    predictor: Predictor
    images: NDArray[np.float32]


Export = Callable[[Architecture], Exported]


def exporter(parent: Callable[[str], Path]) -> Export:
    """Return a function that exports a fresh network of an architecture, once per architecture.

    parent: creates a folder for a preset.
    """
    cache: dict[Architecture, Exported] = {}

    def export(architecture: Architecture) -> Exported:
        if architecture not in cache:
            torch.manual_seed(0)
            network = build_classifier(architecture)
            spec = architecture.input
            shape = (spec.channels, spec.height, spec.width)
            folder = parent(str(architecture.preset))
            export_graphs(network, shape, folder)
            predictor = Predictor.open(folder, network.head.dropout_layers)
            images = np.random.default_rng(0).random((48, *shape), dtype=np.float32)
            cache[architecture] = Exported(network, folder, predictor, images)
        return cache[architecture]

    return export
