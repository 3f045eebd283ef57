"""Networks with fresh weights, exported once: the graphs are real, only their answers are not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle.architecture import Architecture
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor
from training.export.to_onnx import export_graphs
from training.network.classifier import Classifier, build

DIGIT = InputSpec(channels=1, height=8, width=8, resize="pad")


@dataclass(frozen=True)
class Exported:
    network: Classifier
    folder: Path
    predictor: Predictor
    images: NDArray[np.float32]


Export = Callable[[Architecture], Exported]


def exporter(parent: Callable[[str], Path]) -> Export:
    """Return a function that exports an architecture's fresh network once, into a new folder."""
    done: dict[Architecture, Exported] = {}

    def export(architecture: Architecture) -> Exported:
        if architecture not in done:
            torch.manual_seed(0)
            network = build(architecture)
            spec = architecture.input
            shape = (spec.channels, spec.height, spec.width)
            folder = parent(architecture.preset)
            export_graphs(network, shape, folder)
            predictor = Predictor.open(folder, network.head.dropout_layers)
            images = np.random.default_rng(0).random((48, *shape), dtype=np.float32)
            done[architecture] = Exported(network, folder, predictor, images)
        return done[architecture]

    return export
