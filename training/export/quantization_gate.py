"""The gate of `--quantize`: the int8 graph replaces the float32 graph if it predicts as well.

Both graphs are measured on the validation images through `model.inference.predictor`, before
calibration. No test image is used.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.bundle.architecture_description import DropoutLayer
from model.bundle.store import HEAD_FILE, MC_STATISTICS_FILE, MODEL_FILE, Precision
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.uncertainty.calibration import MIN_CALIBRATION_IMAGES
from training.data.dataset import Dataset, Split
from training.evaluation.metrics import classification_metrics, predict_split
from training.evaluation.metrics_schema import PrecisionMetrics, QuantizationMetrics
from training.export.quantize import quantize

MAX_ACCURACY_DROP = 0.001
"""A tenth of a percentage point: with fewer than 1,000 images, no further image may be wrong."""
MAX_LOSS_INCREASE = 0.005
"""Of NLL in nats, and of ECE: about the difference between two trainings with different seeds."""
MAX_DETECTION_DROP = 0.005
"""Of the AUROC of detecting wrong predictions by their uncertainty."""
MAX_INFORMATION_SHIFT = 0.05
"""Relative change of the mean mutual information, up or down: thresholds on it stay valid."""

CALIBRATION_IMAGES = 512
_CALIBRATION_PIXELS = 2**22
_SEED = 0


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of a bundle's graph, and the metrics that decided it."""

    precision: Precision
    refusals: tuple[str, ...]
    """Why int8 was refused, one clause for each metric; empty where int8 was accepted."""
    fp32: PrecisionMetrics
    int8: PrecisionMetrics
    calibration_images: int
    """Number of images that the ranges of the layers' outputs were taken from."""

    def metrics(self) -> QuantizationMetrics:
        """Return the entry `quantization` of the manifest's metrics."""
        return {
            "refusals": list(self.refusals),
            "calibration_images": self.calibration_images,
            "fp32": self.fp32,
            "int8": self.int8,
        }


def choose_precision(
    folder: Path, layers: Sequence[DropoutLayer], data: Dataset
) -> PrecisionChoice:
    """Replace `model.onnx` in `folder` by the int8 graph if that passes the gate.

    Args:
        folder: contains the finished float32 graphs.
        layers: the dropout layers of the head.
        data: the ranges of the layers' outputs are taken from its training images, the metrics
            from its validation images.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    fp32 = precision_metrics(Predictor.open(folder, layers), data.validation)
    images = _calibration_images(data.train)
    with tempfile.TemporaryDirectory() as temporary:
        candidate = Path(temporary)
        quantize(folder / MODEL_FILE, images, candidate / MODEL_FILE)
        for file in (HEAD_FILE, MC_STATISTICS_FILE):
            shutil.copyfile(folder / file, candidate / file)
        int8 = precision_metrics(Predictor.open(candidate, layers), data.validation)
        refusals = refusal_reasons(fp32, int8, len(data.validation))
        if not refusals:
            shutil.copyfile(candidate / MODEL_FILE, folder / MODEL_FILE)
    precision: Precision = "fp32" if refusals else "int8"
    return PrecisionChoice(precision, tuple(refusals), fp32, int8, len(images))


def precision_metrics(predictor: Predictor, split: Split) -> PrecisionMetrics:
    """Measure deterministic predictions, and those with dropout active (`sampled_…`).

    `mistakes_by_…` is the AUROC of detecting wrong predictions by that uncertainty. It is left out
    where all predictions are correct, or all are wrong.
    """
    answers = predict_split(predictor, split)
    deterministic = classification_metrics(answers.probabilities, split.labels)
    sampled = classification_metrics(answers.mean_probabilities, split.labels)
    information = answers.uncertainty.mutual_information
    metrics: PrecisionMetrics = {
        "accuracy": deterministic["accuracy"],
        "nll": deterministic["nll"],
        "ece": deterministic["ece"],
        "sampled_accuracy": sampled["accuracy"],
        "sampled_nll": sampled["nll"],
        "sampled_ece": sampled["ece"],
        "mutual_information": float(information.mean()),
    }
    wrong = answers.mean_probabilities.argmax(axis=1) != split.labels
    if 0 < wrong.sum() < len(wrong):
        entropy = answers.uncertainty.predictive_entropy
        metrics["mistakes_by_entropy"] = float(roc_auc_score(wrong, entropy))
        metrics["mistakes_by_information"] = float(roc_auc_score(wrong, information))
    return metrics


def refusal_reasons(fp32: PrecisionMetrics, int8: PrecisionMetrics, images: int) -> list[str]:
    """Return the reasons to refuse int8, sorted; none where it passes the gate.

    Only metrics that both graphs have are compared.

    Args:
        fp32: the metrics of the float32 graph.
        int8: the metrics of the int8 graph.
        images: number of images that they were measured on.
    """
    if images < MIN_CALIBRATION_IMAGES:
        needed = f"{MIN_CALIBRATION_IMAGES} are needed"
        return [f"{images} validation images are too few to tell; {needed}"]
    reasons = []
    for name in fp32.keys() & int8.keys():
        change = int8[name] - fp32[name]
        if name.endswith("accuracy"):
            worse, allowed = -change, MAX_ACCURACY_DROP
        elif name.endswith(("nll", "ece")):
            worse, allowed = change, MAX_LOSS_INCREASE
        elif name.startswith("mistakes_by_"):
            worse, allowed = -change, MAX_DETECTION_DROP
        else:
            worse = abs(change) / max(fp32[name], np.finfo(np.float64).tiny)
            allowed = MAX_INFORMATION_SHIFT
        # `worse > allowed` would accept NaN. 1e-12 allows for the rounding of the difference.
        if not worse <= allowed + 1e-12:
            reasons.append(f"{name} {fp32[name]:.4f} became {int8[name]:.4f}")
    return sorted(reasons)


def _calibration_images(train: Split) -> NDArray[np.float32]:
    """Draw training images for the ranges of the layers' outputs: float32 [N, C, H, W] in 0..1."""
    by_pixels = max(1, _CALIBRATION_PIXELS // train.images[0].size)
    count = min(len(train), CALIBRATION_IMAGES, by_pixels)
    rows = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(train))[:count]
    return to_float(train.images[np.sort(rows)])
