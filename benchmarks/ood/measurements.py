"""Measures a bundle, and a deep ensemble of bundles, on test images and on OOD images.

Metrics are those of `training.evaluation`. Knows no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.ood.ood_images import Images
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.uncertainty.calibration import Calibrator
from model.uncertainty.uncertainty_measures import entropy
from training.data.dataset import Dataset, Split
from training.evaluation.metrics import (
    SAMPLES,
    SEED,
    Answers,
    classification_metrics,
    evaluate,
    predict_split,
)
from training.evaluation.metrics_schema import AbstentionMetrics, ClassCoverageMetrics
from training.evaluation.selective_prediction import (
    CLASS_COVERAGE_KINDS,
    abstention_metrics,
    auroc_and_fpr95,
    class_coverage_metrics,
    ood_scores,
    risk_coverage,
)

ONE_NETWORK = "one network"
WITH_TYPICALITY = "one network, with typicality"
THINNED_NETWORKS = f"{SAMPLES} thinned networks, with typicality"
TYPICALITY = "typicality"
LOGIT_VARIANCE = "logit variance"
FALSE_ALARM_RATES = (0.01, 0.05)
_BATCH_SIZE = 1_000

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


class Quality(NamedTuple):
    """How good class probabilities are on the test images."""

    accuracy: float
    nll: float
    ece: float
    aurc: float
    """Of the ranking by the largest probability."""


class Detection(NamedTuple):
    """How well a score separates OOD images from the test images."""

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class KindFigures:
    """The figures of one bundle on one kind of OOD images."""

    images: int
    detection: Mapping[str, Detection]
    """By score."""
    unusual: Mapping[float, float]
    """Share of images that are unusual, by false-alarm rate."""
    answered: float
    """Share of images that get a label with default settings."""


@dataclass(frozen=True)
class BundleFigures:
    """The figures of one bundle."""

    quality: Mapping[str, Quality]
    """Of ONE_NETWORK and of THINNED_NETWORKS."""
    kinds: Mapping[str, KindFigures]
    false_alarms: Mapping[float, float]
    """Share of test images that are unusual, by false-alarm rate."""
    abstention: AbstentionMetrics
    """With default settings, on the test images."""
    prediction_sets: Mapping[str, ClassCoverageMetrics]
    """By kind of sets."""
    test_probabilities: Floats
    """[N, K], of the deterministic pass."""
    uncalibrated_probabilities: Floats
    """The same before calibration, [N, K]."""
    ood_probabilities: Mapping[str, Floats]
    """[M, K], by kind of images."""


@dataclass(frozen=True)
class EnsembleFigures:
    """The figures of a deep ensemble."""

    members: int
    quality: Quality
    uncalibrated_quality: Quality
    """Of the ensemble of the members before calibration."""
    detection: Mapping[str, Mapping[str, Detection]]
    """By kind of images, then by score."""


def measure_bundle(
    predictor: Predictor, calibrator: Calibrator, data: Dataset, kinds: Mapping[str, Images]
) -> BundleFigures:
    """Measure a bundle on the test images of `data` and on every kind of OOD images."""
    test = evaluate(predictor, data.test, data.class_names)
    answers, labels = test.answers, data.test.labels
    uncalibrated = test.uncalibrated or answers
    known_scores = _scores(predictor, answers, data.test.images)
    answers_by_kind = {
        name: predict_split(predictor, Split(images, np.zeros(len(images), np.int64)))
        for name, images in kinds.items()
    }
    correct = answers.mean_probabilities.argmax(axis=1) == labels
    return BundleFigures(
        quality={
            ONE_NETWORK: measure_quality(answers.probabilities, labels),
            THINNED_NETWORKS: measure_quality(answers.mean_probabilities, labels),
        },
        kinds={
            name: KindFigures(
                images=len(images),
                detection=detect(known_scores, _scores(predictor, answers_by_kind[name], images)),
                unusual=_unusual(answers_by_kind[name]),
                answered=_share_answered(answers_by_kind[name], calibrator),
            )
            for name, images in kinds.items()
        },
        false_alarms=_unusual(answers),
        abstention=abstention_metrics(answers.uncertainty, correct, calibrator),
        prediction_sets={
            kind: class_coverage_metrics(test, calibrator, kind) for kind in CLASS_COVERAGE_KINDS
        },
        test_probabilities=answers.probabilities,
        uncalibrated_probabilities=uncalibrated.probabilities,
        ood_probabilities={name: each.probabilities for name, each in answers_by_kind.items()},
    )


def measure_ensemble(bundles: Sequence[BundleFigures], labels: Labels) -> EnsembleFigures:
    """Measure the deep ensemble of networks (Lakshminarayanan et al. 2017).

    It predicts the mean of their deterministic, calibrated probabilities; since that is less
    confident than its calibrated members (Rahaman & Thiery 2021), the mean before calibration is
    measured as well. Its mutual information is the entropy of the mean, less the mean of the
    entropies.

    Args:
        bundles: measured on the same images.
        labels: the true classes of the test images, int64 [N].
    """
    test = np.stack([bundle.test_probabilities for bundle in bundles])
    known = ensemble_scores(test)
    return EnsembleFigures(
        members=len(bundles),
        quality=measure_quality(test.mean(axis=0), labels),
        uncalibrated_quality=measure_quality(
            np.mean([bundle.uncalibrated_probabilities for bundle in bundles], axis=0), labels
        ),
        detection={
            kind: detect(
                known,
                ensemble_scores(np.stack([bundle.ood_probabilities[kind] for bundle in bundles])),
            )
            for kind in bundles[0].ood_probabilities
        },
    )


def measure_quality(probabilities: Floats, labels: Labels) -> Quality:
    """Measure class probabilities [N, K], given the true classes, int64 [N]."""
    metrics = classification_metrics(probabilities, labels)
    correct = probabilities.argmax(axis=1) == labels
    _, risks = risk_coverage(probabilities.max(axis=1), correct)
    return Quality(metrics["accuracy"], metrics["nll"], metrics["ece"], float(risks.mean()))


def detect(known: Mapping[str, Floats], ood: Mapping[str, Floats]) -> dict[str, Detection]:
    """Measure how well each score detects OOD images; scores [N] by name, higher for OOD images."""
    return {name: Detection(*auroc_and_fpr95(known[name], ood[name])) for name in known}


def ensemble_scores(probabilities: Floats) -> dict[str, Floats]:
    """Return the scores of a deep ensemble, [N] by name, from the probabilities [members, N, K]."""
    mean = probabilities.mean(axis=0)
    total = entropy(mean)
    return {
        "maximum probability": 1 - mean.max(axis=1),
        "predictive entropy": total,
        "mutual information": total - entropy(probabilities).mean(axis=0),
    }


def mean_logit_variance(predictor: Predictor, images: Images) -> Floats:
    """Return the variance over SAMPLES samples of the logits, mean over the classes: [N]."""
    sampling, parts = FixedSamples(SEED, SAMPLES), []
    for start in range(0, len(images), _BATCH_SIZE):
        prediction = predictor.predict(to_float(images[start : start + _BATCH_SIZE]))
        logits = predictor.sample(prediction.features, sampling)
        parts.append(logits.var(axis=1, dtype=np.float64).mean(axis=1))
    return np.concatenate(parts)


def _scores(predictor: Predictor, answers: Answers, images: Images) -> dict[str, Floats]:
    return ood_scores(answers) | {LOGIT_VARIANCE: mean_logit_variance(predictor, images)}


def _unusual(answers: Answers) -> dict[float, float]:
    typicality = answers.uncertainty.typicality
    return {rate: float((typicality <= rate).mean()) for rate in FALSE_ALARM_RATES}


def _share_answered(answers: Answers, calibrator: Calibrator) -> float:
    """Return the share of OOD images that get a label, which can only be wrong."""
    wrong = np.zeros(len(answers.probabilities), np.bool_)
    return abstention_metrics(answers.uncertainty, wrong, calibrator)["answered"]
