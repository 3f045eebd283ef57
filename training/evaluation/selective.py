"""Can the answers be acted on? Risk at each coverage, prediction sets, strangers told apart.

Knows no plot. Everything is measured on images that nothing was fitted on.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from model.uncertainty.calibration import Calibrator, conformal_threshold
from training.evaluation.metrics import Answers, Evaluation

COVERAGE = 0.9
SPLITS = 20
FEWEST_IMAGES = 20
SEED = 0
_RECALL = 0.95

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def measure(evaluation: Evaluation, calibrated: Calibrator | None) -> dict[str, Any]:
    """Return what the manifest says of it; see `selection` and `halved`."""
    probabilities = evaluation.answers.mean_probabilities
    right = probabilities.argmax(axis=1) == evaluation.labels
    _, risks = risk_coverage(probabilities.max(axis=1), right)
    return {
        "aurc": float(risks.mean()),
        "augrc": float((risks * np.arange(1, len(risks) + 1)).mean() / len(risks)),
        "selection": None if calibrated is None else selection(probabilities, right, calibrated),
        "prediction_sets": prediction_sets(probabilities, evaluation.labels),
    }


def prediction_sets(probabilities: Floats, labels: NDArray[np.int64]) -> dict[str, float] | None:
    """Return what sets at the default coverage do; None where halves of the images say nothing."""
    if len(labels) < FEWEST_IMAGES:
        return None
    covered, sizes = halved(probabilities, labels, COVERAGE)
    return {
        "coverage": COVERAGE,
        "splits": SPLITS,
        "covered": float(covered.mean()),
        "covered_least": float(covered.min()),
        "covered_most": float(covered.max()),
        "size": float(sizes.mean()),
    }


def risk_coverage(confidence: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Return the shares answered, ascending, and the error rate among the answered: [N] each.

    The mean of the risks is AURC (Geifman et al. 2019); that of risk times coverage is AUGRC (Traub
    et al. 2024). Of equally confident images each order counts alike.

    Args:
        confidence: [N]; the most confident are answered first.
        right: [N].
    """
    order = np.argsort(-confidence, kind="stable")
    _, group, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right[order]) / sizes
    answered = np.arange(1, len(right) + 1)
    return answered / len(right), np.cumsum(wrong[group]) / answered


def selection(probabilities: Floats, right: Bools, calibrated: Calibrator) -> dict[str, float]:
    """Return what abstention at the bundle's own risk does: share answered, error among those."""
    risk = calibrated.numbers.max_risk
    threshold = calibrated.threshold(risk)
    answered = probabilities.max(axis=1) >= (np.inf if threshold is None else threshold)
    error = float((~right[answered]).mean()) if answered.any() else 0.0
    return {"max_risk": risk, "answered": float(answered.mean()), "error": error}


def halved(
    probabilities: Floats, labels: NDArray[np.int64], coverage: float
) -> tuple[Floats, Floats]:
    """Fit `thr` sets on a random half of the images, SPLITS times, and measure them on the other.

    Returns:
        The share of sets that hold the true class [SPLITS], and their mean size [SPLITS].
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    scores = 1 - probabilities
    true = scores[np.arange(len(labels)), labels]
    covered, sizes = np.empty(SPLITS), np.empty(SPLITS)
    for split in range(SPLITS):
        known, new = np.array_split(generator.permutation(len(labels)), 2)
        threshold = conformal_threshold(np.sort(true[known]), coverage)
        covered[split] = (true[new] <= threshold).mean()
        sizes[split] = (scores[new] <= threshold).sum(axis=1).mean()
    return covered, sizes


def ood_scores(answers: Answers) -> dict[str, Floats]:
    """Return each score that is higher for stranger images: [N] by its name."""
    uncertainty = answers.uncertainty
    scores = {
        "maximum probability": 1 - answers.probabilities.max(axis=1),
        "predictive entropy": uncertainty.predictive_entropy,
        "mutual information": uncertainty.mutual_information,
        "typicality": 1 - uncertainty.typicality,
    }
    return {name: values for name, values in scores.items() if np.isfinite(values).all()}


def strangers(known: Answers, strange: Answers) -> dict[str, dict[str, float]]:
    """Return how well each score tells the strangers: AUROC and FPR95 by its name."""
    inside, outside = ood_scores(known), ood_scores(strange)
    told = {name: ood_metrics(inside[name], outside[name]) for name in inside}
    return {name: {"auroc": auroc, "fpr95": false} for name, (auroc, false) in told.items()}


def ood_metrics(known: Floats, strange: Floats) -> tuple[float, float]:
    """Return how well a score tells strangers: AUROC, and FPR95.

    FPR95 is the share of strangers that pass where 95 % of the known images do (Hendrycks & Gimpel
    2017).

    Args:
        known: [N], scores of known images.
        strange: [M], scores of strangers.
    """
    truth = np.repeat([1, 0], [len(known), len(strange)])
    scores = -np.concatenate([known, strange])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(roc_auc_score(truth, scores)), float(false[np.searchsorted(true, _RECALL)])
