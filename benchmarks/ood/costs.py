"""Measures the time and the bytes of each way to predict with uncertainty, by turns in one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.utils import Extractor

from benchmarks.ood.measurements import ONE_NETWORK, THINNED_NETWORKS, WITH_TYPICALITY
from model.bundle.store import HEAD_FILE, MODEL_FILE, open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.graphs.softmax_temperature import OUTPUTS, SCALE
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE
from training.evaluation.metrics import SAMPLES, SEED

BATCH_SIZE = 64
_ROUNDS = 30
_SINGLE_IMAGES = 20
"""Images that are predicted one by one in a round."""


@dataclass(frozen=True)
class Cost:
    """What one way to predict takes on one core."""

    single_ms: float
    """Milliseconds for an image that is predicted alone; median over the rounds."""
    batch_ms: float
    """Milliseconds for an image in a batch of BATCH_SIZE; median over the rounds."""
    size_bytes: int
    """Of the graphs and the calibration that are needed."""


def measure_costs(
    folders: Sequence[Path], images: NDArray[np.uint8], rounds: int = _ROUNDS
) -> dict[str, Cost]:
    """Measure the first bundle, and the ensemble of all if there are several.

    Args:
        folders: of bundles of the same input.
        images: [N, C, H, W], at least 1; they are repeated where BATCH_SIZE is more.
        rounds: of measurement; in each, every way to predict has a turn.
    """
    batch = to_float(np.resize(images, (BATCH_SIZE, *images.shape[1:])))
    graphs = [without_ood_score((folder / MODEL_FILE).read_bytes()) for folder in folders]
    networks = [_open(folder, graph) for folder, graph in zip(folders, graphs, strict=True)]
    whole = load_predictor(open_bundle(folders[0]))
    sampling = FixedSamples(SEED, SAMPLES)
    typicality_bytes = _size(folders[0], MODEL_FILE, CALIBRATION_FILE)
    ways: dict[str, tuple[Callable[[NDArray[np.float32]], object], int]] = {
        ONE_NETWORK: (lambda images: networks[0].predict(images).probabilities, len(graphs[0])),
        WITH_TYPICALITY: (lambda images: _with_typicality(whole, images), typicality_bytes),
        THINNED_NETWORKS: (
            lambda images: whole.uncertainty(whole.predict(images), sampling),
            typicality_bytes + _size(folders[0], HEAD_FILE),
        ),
    }
    if len(folders) > 1:
        ways[ensemble_name(len(folders))] = (
            lambda images: np.mean([each.predict(images).probabilities for each in networks], 0),
            sum(map(len, graphs)),
        )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (predict, _) in ways.items():
            times[name].append((_time_single(predict, batch), _time_batch(predict, batch)))
    costs = {}
    for name, (_, size) in ways.items():
        singles, batches = zip(*times[name][1:], strict=True)  # the first round warms up
        costs[name] = Cost(1e3 * median(singles), 1e3 * median(batches), size)
    return costs


def ensemble_name(members: int) -> str:
    """Return how tables name a deep ensemble."""
    return f"deep ensemble of {members} networks"


def without_ood_score(graph: bytes) -> bytes:
    """Return an encoded trunk's graph without what typicality is computed from."""
    model = Extractor(onnx.load_from_string(graph)).extract_model(
        ["images", SCALE], ["logits", "features", *OUTPUTS]
    )
    return bytes(model.SerializeToString())


def _open(folder: Path, graph: bytes) -> Predictor:
    """Return a predictor of the bundle in `folder`, with another graph of the trunk."""
    layers = open_bundle(folder).manifest.dropout_layers

    def read(file: str) -> bytes:
        return graph if file == MODEL_FILE else (folder / file).read_bytes()

    return Predictor.from_files(read, folder, layers)


def _with_typicality(predictor: Predictor, images: NDArray[np.float32]) -> tuple[object, object]:
    prediction = predictor.predict(images)
    return prediction.probabilities, prediction.typicality


def _size(folder: Path, *files: str) -> int:
    return sum((folder / file).stat().st_size for file in files)


def _time_single(
    predict: Callable[[NDArray[np.float32]], object], batch: NDArray[np.float32]
) -> float:
    """Return the seconds of one prediction of an image alone."""
    start = perf_counter()
    for row in range(_SINGLE_IMAGES):
        predict(batch[row : row + 1])
    return (perf_counter() - start) / _SINGLE_IMAGES


def _time_batch(
    predict: Callable[[NDArray[np.float32]], object], batch: NDArray[np.float32]
) -> float:
    """Return the seconds of an image in a batch."""
    start = perf_counter()
    predict(batch)
    return (perf_counter() - start) / len(batch)
