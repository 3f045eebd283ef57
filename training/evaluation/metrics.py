"""Every published figure, measured on the exported bundle through `model.inference.predictor`.

Knows no training loop. scikit-learn computes the figures, but for the
calibration error.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from model.dropout.sampling import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.uncertainty.summary import Uncertainty, joined
from training.data.dataset import Split

ECE_BINS = 15
SAMPLES = 64
SEED = 0
_TOP = 5
_CHUNK = 1_000

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a bundle says of N images, K classes."""

    probabilities: Floats
    """[N, K], of the deterministic pass."""
    uncertainty: Uncertainty
    """Of SAMPLES samples with seed SEED."""

    @property
    def mean_probabilities(self) -> Floats:
        """[N, K], with dropout alive."""
        return self.uncertainty.mean_probabilities


@dataclass(frozen=True)
class Evaluation:
    """A bundle's answers on one part, labels int64 [N], and the figures that they come to."""

    answers: Answers
    uncalibrated: Answers | None
    """The answers as they were before calibration; None where there was none."""
    labels: Labels
    metrics: dict[str, Any]


def evaluate(predictor: Predictor, part: Split, class_names: Sequence[str]) -> Evaluation:
    """Run the bundle over `part` and measure it, plain and with dropout alive."""
    given = answers(predictor, part)
    before = None
    if predictor.calibrated is not None:
        bare = copy(predictor)
        bare.calibrated = None
        before = answers(bare, part)
    metrics = {
        "images": len(part),
        **_both(given, part.labels),
        "uncalibrated": None if before is None else _both(before, part.labels),
        "per_class": per_class(given.probabilities, part.labels, class_names),
        "confusion_matrix": confusion(given.probabilities, part.labels).tolist(),
    }
    return Evaluation(given, before, part.labels, metrics)


def answers(predictor: Predictor, part: Split) -> Answers:
    """Run the bundle over `part`, plain and with dropout alive."""
    plain, sampled = [], []
    for start in range(0, len(part), _CHUNK):
        prediction = predictor.predict(to_float(part.images[start : start + _CHUNK]))
        plain.append(prediction.probabilities)
        sampled.append(predictor.uncertainty(prediction, FixedSamples(SEED, SAMPLES)))
    return Answers(np.concatenate(plain), joined(sampled))


def _both(given: Answers, labels: Labels) -> dict[str, Any]:
    return figures(given.probabilities, labels) | {
        "mc_dropout": {
            "samples": SAMPLES,
            "seed": SEED,
            **figures(given.mean_probabilities, labels),
        }
    }


def figures(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Measure accuracy, top-5 where K > 5, NLL (nats), Brier score (0..2) and ECE (0..1)."""
    classes = np.arange(probabilities.shape[1])
    result = {"accuracy": float((probabilities.argmax(axis=1) == labels).mean())}
    if len(classes) > _TOP:
        result["top5_accuracy"] = float(
            top_k_accuracy_score(labels, probabilities, k=_TOP, labels=classes)
        )
    result["nll"] = float(log_loss(labels, probabilities, labels=classes))
    result["brier"] = float(
        brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    )
    result["ece"] = expected_calibration_error(probabilities, labels)
    return result


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Mean |accuracy - confidence| over 15 equal-width bins, weighted by size (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    # torchmetrics would put a confidence that rounds to 1 into a bin of its own.
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def per_class(
    probabilities: Floats, labels: Labels, class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall and image count of each class; 0 where nothing was predicted."""
    precision, recall, _, support = precision_recall_fscore_support(
        labels,
        probabilities.argmax(axis=1),
        labels=np.arange(len(class_names)),
        zero_division=0,
    )
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "images": int(support[index]),
        }
        for index, name in enumerate(class_names)
    }


def confusion(probabilities: Floats, labels: Labels) -> NDArray[np.int64]:
    """Count images by (true class, predicted class): int64 [K, K]."""
    classes = np.arange(probabilities.shape[1])
    counts: NDArray[np.int64] = confusion_matrix(
        labels, probabilities.argmax(axis=1), labels=classes
    )
    return counts
