"""Measures selective prediction, prediction sets and out-of-distribution (OOD) detection.

Knows no plot. Everything is measured on images that nothing was fitted on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from model.uncertainty.calibration import DEFAULT_MAX_FALSE_ALARM, Calibrator
from model.uncertainty.prediction_sets import SetKind, classes_up_to, conformal_threshold
from model.uncertainty.uncertainty_measures import Uncertainty
from model.uncertainty.uncertainty_of_validation_images import COVERAGE
from training.evaluation.metrics import Answers, Evaluation
from training.evaluation.metrics_schema import (
    AbstentionMetrics,
    ClassCoverageMetrics,
    OodScoreMetrics,
    PredictionSetMetrics,
    SelectiveMetrics,
)

HALVINGS = 20
CLASS_COVERAGE_KINDS: tuple[SetKind, ...] = ("thr", "class-conditional")
"""The kinds of prediction sets whose coverage is measured by class."""
MIN_PREDICTION_SET_IMAGES = 20
"""With fewer images, halves are too small to fit prediction sets on."""
SEED = 0
_TRUE_POSITIVE_RATE = 0.95
"""Of FPR95."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class OodAnswers:
    """A bundle's predictions for images of classes that it was not trained on."""

    name: str
    """Name of the data set."""
    answers: Answers


def selective_metrics(evaluation: Evaluation, calibrator: Calibrator | None) -> SelectiveMetrics:
    """Measure the ranking by confidence, abstention and prediction sets.

    Args:
        evaluation: the predictions with dropout active are measured.
        calibrator: of the bundle; None skips abstention and the coverage by class.
    """
    uncertainty = evaluation.answers.uncertainty
    probabilities = uncertainty.mean_probabilities
    correct = probabilities.argmax(axis=1) == evaluation.labels
    _, risks = risk_coverage(probabilities.max(axis=1), correct)
    return {
        "aurc": float(risks.mean()),
        "augrc": float((risks * np.arange(1, len(risks) + 1)).mean() / len(risks)),
        "selection": None
        if calibrator is None
        else abstention_metrics(uncertainty, correct, calibrator),
        "prediction_sets": prediction_set_metrics(probabilities, evaluation.labels),
        "class_coverage": None
        if calibrator is None
        else {
            kind: class_coverage_metrics(evaluation, calibrator, kind)
            for kind in CLASS_COVERAGE_KINDS
        },
    }


def class_coverage_metrics(
    evaluation: Evaluation, calibrator: Calibrator, kind: SetKind
) -> ClassCoverageMetrics:
    """Measure the prediction sets of coverage COVERAGE that the bundle's own calibration gives.

    Args:
        evaluation: the predictions with dropout active are measured.
        calibrator: of the bundle.
        kind: of the prediction sets.
    """
    uncertainty, labels = evaluation.answers.uncertainty, evaluation.labels
    sets = calibrator.prediction_sets(
        uncertainty.mean_probabilities, COVERAGE, kind, uncertainty.set_draws
    )
    covered = sets[np.arange(len(labels)), labels]
    by_class = {
        name: float(covered[labels == label].mean())
        for label, name in enumerate(evaluation.metrics["per_class"])
        if (labels == label).any()
    }
    return {
        "coverage": COVERAGE,
        "covered": float(covered.mean()),
        "size": float(sets.sum(axis=1).mean()),
        "by_class": by_class,
        "worst_class": min(by_class, key=by_class.__getitem__),
    }


def prediction_set_metrics(
    probabilities: Floats, labels: NDArray[np.int64]
) -> PredictionSetMetrics | None:
    """Measure prediction sets of coverage COVERAGE; None below MIN_PREDICTION_SET_IMAGES images.

    Args:
        probabilities: [N, K].
        labels: the true classes, int64 [N].
    """
    if len(labels) < MIN_PREDICTION_SET_IMAGES:
        return None
    covered, sizes = split_conformal_trials(probabilities, labels, COVERAGE)
    return {
        "coverage": COVERAGE,
        "splits": HALVINGS,
        "covered": float(covered.mean()),
        "covered_least": float(covered.min()),
        "covered_most": float(covered.max()),
        "size": float(sizes.mean()),
    }


def risk_coverage(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """Return the coverages (shares answered), ascending, and the error rate at each: [N] each.

    The mean of the error rates is AURC (Geifman et al. 2019); the mean of error rate times coverage
    is AUGRC (Traub et al. 2024). Errors among equally confident images are averaged over all orders
    of these images.

    Args:
        confidence: [N]; the most confident images are answered first.
        correct: bool [N], whether each prediction is correct.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=~correct[order]) / sizes
    answered = np.arange(1, len(correct) + 1)
    return answered / len(correct), np.cumsum(errors[group]) / answered


def abstention_metrics(
    uncertainty: Uncertainty, correct: Bools, calibrator: Calibrator
) -> AbstentionMetrics:
    """Measure abstention at the default levels: share answered, and error rate among them.

    The error rate is None where nothing is answered.

    Args:
        uncertainty: of N images.
        correct: bool [N], whether each prediction is correct.
        calibrator: of the bundle; it decides which predictions are answered.
    """
    abstentions = calibrator.abstentions(
        uncertainty.confidences(), uncertainty.typicality, None, DEFAULT_MAX_FALSE_ALARM
    )
    answered = ~abstentions.abstain
    return {
        "max_risk": abstentions.max_risk,
        "max_false_alarm": abstentions.max_false_alarm,
        "answered": float(answered.mean()),
        "unusual": float(abstentions.unusual.mean()),
        "error": float((~correct[answered]).mean()) if answered.any() else None,
    }


def split_conformal_trials(
    probabilities: Floats, labels: NDArray[np.int64], coverage: float
) -> tuple[Floats, Floats]:
    """Fit `thr` prediction sets on a random half of the images and measure them on the other half.

    This is repeated HALVINGS times.

    Args:
        probabilities: [N, K].
        labels: the true classes, int64 [N].
        coverage: 0 < coverage < 1.

    Returns:
        The share of sets that contain the true class, and the mean size of a set: [HALVINGS] each.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    scores = 1 - probabilities
    true_scores = scores[np.arange(len(labels)), labels]
    covered, sizes = np.empty(HALVINGS), np.empty(HALVINGS)
    for trial in range(HALVINGS):
        fitted, tested = np.array_split(generator.permutation(len(labels)), 2)
        threshold = conformal_threshold(np.sort(true_scores[fitted]), coverage)
        sets = classes_up_to(threshold, scores[tested], probabilities[tested])
        covered[trial] = sets[np.arange(len(tested)), labels[tested]].mean()
        sizes[trial] = sets.sum(axis=1).mean()
    return covered, sizes


def ood_scores(answers: Answers) -> dict[str, Floats]:
    """Return every score that should be higher for out-of-distribution images: [N] by its name.

    Typicality is left out for an uncalibrated bundle.
    """
    uncertainty = answers.uncertainty
    scores = {
        "maximum probability": 1 - answers.probabilities.max(axis=1),
        "predictive entropy": uncertainty.predictive_entropy,
        "mutual information": uncertainty.mutual_information,
        "typicality": 1 - uncertainty.typicality,
    }
    return {name: values for name, values in scores.items() if np.isfinite(values).all()}


def ood_detection_metrics(
    in_distribution: Answers, out_of_distribution: Answers
) -> dict[str, OodScoreMetrics]:
    """Measure how well each score detects out-of-distribution images: AUROC and FPR95 by name."""
    known, ood = ood_scores(in_distribution), ood_scores(out_of_distribution)
    metrics: dict[str, OodScoreMetrics] = {}
    for name in known:
        auroc, fpr95 = auroc_and_fpr95(known[name], ood[name])
        metrics[name] = {"auroc": auroc, "fpr95": fpr95}
    return metrics


def auroc_and_fpr95(in_distribution: Floats, out_of_distribution: Floats) -> tuple[float, float]:
    """Measure how well a score detects out-of-distribution images: AUROC, and FPR95.

    FPR95 is the share of out-of-distribution images that are accepted at the threshold that accepts
    95 % of the in-distribution images (Hendrycks & Gimpel 2017).

    Args:
        in_distribution: [N], scores of in-distribution images.
        out_of_distribution: [M], scores of out-of-distribution images, expected to be higher.
    """
    truth = np.repeat([1, 0], [len(in_distribution), len(out_of_distribution)])
    scores = -np.concatenate([in_distribution, out_of_distribution])
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    first = np.searchsorted(true_positive_rate, _TRUE_POSITIVE_RATE)
    return float(roc_auc_score(truth, scores)), float(false_positive_rate[first])
