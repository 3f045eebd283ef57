"""Measures the classification metrics of an exported bundle, through `model.inference.predictor`.

Knows no training loop. scikit-learn computes the metrics, except the calibration error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.uncertainty.calibration import Calibrator
from model.uncertainty.uncertainty_measures import Uncertainty, concatenate
from model.uncertainty.uncertainty_of_validation_images import ValidationDistributions
from training.data.dataset import Split
from training.evaluation.metrics_schema import (
    ClassificationMetrics,
    ClassMetrics,
    DistributionMetrics,
    PredictionMetrics,
    SplitMetrics,
    Top5Metrics,
)

ECE_BINS = 15
SAMPLES = 64
"""Samples of MC dropout, in the metrics and in the calibration: held-out outputs serve both."""
SEED = 0
_TOP_K = 5
_BATCH_SIZE = 1_000

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """A bundle's predictions for N images over K classes."""

    probabilities: Floats
    """[N, K], of the deterministic pass."""
    uncertainty: Uncertainty
    """Of SAMPLES samples of MC dropout with seed SEED."""

    @property
    def mean_probabilities(self) -> Floats:
        """[N, K], the mean over the samples, with dropout active."""
        return self.uncertainty.mean_probabilities


@dataclass(frozen=True)
class Evaluation:
    """A bundle's predictions on one data split, and the metrics computed from them."""

    answers: Answers
    uncalibrated: Answers | None
    """The predictions before calibration; None for a bundle without a calibration."""
    labels: Labels
    """The true classes, int64 [N]."""
    metrics: SplitMetrics


def evaluate(predictor: Predictor, split: Split, class_names: Sequence[str]) -> Evaluation:
    """Run the bundle over `split`, deterministic and with dropout active, and measure it."""
    answers = predict_split(predictor, split)
    uncalibrated = None
    if predictor.calibrator is not None:
        uncalibrated = predict_split(predictor.with_calibrator(None), split)
    return evaluate_answers(answers, uncalibrated, split.labels, class_names)


def evaluate_answers(
    answers: Answers, uncalibrated: Answers | None, labels: Labels, class_names: Sequence[str]
) -> Evaluation:
    """Measure predictions, and those before calibration, against the labels, int64 [N]."""
    metrics: SplitMetrics = {
        "images": len(labels),
        **prediction_metrics(answers, labels),
        "uncalibrated": None if uncalibrated is None else prediction_metrics(uncalibrated, labels),
        "per_class": per_class_metrics(answers.probabilities, labels, class_names),
        "confusion_matrix": confusion_counts(answers.probabilities, labels).tolist(),
    }
    return Evaluation(answers, uncalibrated, labels, metrics)


def distribution_metrics(
    evaluation: Evaluation, calibrator: Calibrator | None
) -> DistributionMetrics:
    """Measure how uncertain the images are; calibrator: of the bundle; None: it is uncalibrated."""
    measured = ValidationDistributions.measure(evaluation.answers.uncertainty, calibrator)
    return cast(DistributionMetrics, measured.model_dump(mode="json"))


def predict_split(predictor: Predictor, split: Split) -> Answers:
    """Run the bundle over `split`, deterministic and with dropout active."""
    probabilities, uncertainties = [], []
    for start in range(0, len(split), _BATCH_SIZE):
        prediction = predictor.predict(to_float(split.images[start : start + _BATCH_SIZE]))
        probabilities.append(prediction.probabilities)
        uncertainties.append(predictor.uncertainty(prediction, FixedSamples(SEED, SAMPLES)))
    return Answers(np.concatenate(probabilities), concatenate(uncertainties))


def prediction_metrics(answers: Answers, labels: Labels) -> PredictionMetrics:
    """Measure the deterministic probabilities and the mean probabilities with dropout active.

    Args:
        answers: the predictions for N images.
        labels: the true classes, int64 [N].
    """
    return {
        **classification_metrics(answers.probabilities, labels),
        "mc_dropout": {
            "samples": SAMPLES,
            "seed": SEED,
            **classification_metrics(answers.mean_probabilities, labels),
        },
    }


def classification_metrics(probabilities: Floats, labels: Labels) -> ClassificationMetrics:
    """Measure accuracy, top-5 accuracy where K > 5, NLL (nats), Brier score (0..2), ECE (0..1).

    Args:
        probabilities: [N, K].
        labels: the true classes, int64 [N].
    """
    classes = np.arange(probabilities.shape[1])
    top5: Top5Metrics = {}
    if len(classes) > _TOP_K:
        top5["top5_accuracy"] = float(
            top_k_accuracy_score(labels, probabilities, k=_TOP_K, labels=classes)
        )
    return {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        **top5,
        "nll": float(log_loss(labels, probabilities, labels=classes)),
        "brier": float(
            brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
        ),
        "ece": expected_calibration_error(probabilities, labels),
    }


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Return the mean |accuracy - confidence| over 15 equal-width bins (Guo et al. 2017).

    Bins are weighted by their number of images.

    Args:
        probabilities: [N, K].
        labels: the true classes, int64 [N].
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # torchmetrics would put a confidence that rounds to 1 into a bin of its own.
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def per_class_metrics(
    probabilities: Floats, labels: Labels, class_names: Sequence[str]
) -> dict[str, ClassMetrics]:
    """Return precision, recall and number of images by class name.

    The precision of a class that is never predicted is 0, as is the recall of one without images.

    Args:
        probabilities: [N, K].
        labels: the true classes, int64 [N].
        class_names: of length K.
    """
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


def confusion_counts(probabilities: Floats, labels: Labels) -> NDArray[np.int64]:
    """Count images by true class (row) and predicted class (column): int64 [K, K]."""
    classes = np.arange(probabilities.shape[1])
    counts: NDArray[np.int64] = confusion_matrix(
        labels, probabilities.argmax(axis=1), labels=classes
    )
    return counts
