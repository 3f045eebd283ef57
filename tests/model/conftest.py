"""Networks with fresh weights, exported once: the graphs are real, only their answers are not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.architecture import Architecture
from model.export import export_graphs
from model.network import Classifier, build
from model.predictor import Predictor
from model.preprocessing import InputSpec

DIGIT = InputSpec(channels=1, height=8, width=8, resize="pad")


@dataclass(frozen=True)
class Exported:
    network: Classifier
    folder: Path
    predictor: Predictor
    images: NDArray[np.float32]


Export = Callable[[Architecture], Exported]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export an architecture's fresh network once a session."""
    done: dict[Architecture, Exported] = {}

    def exported(architecture: Architecture) -> Exported:
        if architecture not in done:
            torch.manual_seed(0)
            network = build(architecture)
            spec = architecture.input
            shape = (spec.channels, spec.height, spec.width)
            folder = tmp_path_factory.mktemp(architecture.preset)
            export_graphs(network, shape, folder)
            predictor = Predictor.open(folder, network.head.dropout_layers)
            images = np.random.default_rng(0).random((48, *shape), dtype=np.float32)
            done[architecture] = Exported(network, folder, predictor, images)
        return done[architecture]

    return exported


@pytest.fixture(scope="session")
def cnn(export: Export) -> Exported:
    """The default preset on 8 x 8 grey images."""
    return export(Architecture(classes=10, input=DIGIT))
