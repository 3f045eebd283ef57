"""Synthetic predictions that are perfectly calibrated, for tests of what calibration promises."""

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.calibration import Calibration, CalibrationArrays, Calibrator
from model.uncertainty.prediction_sets import aps_scores
from model.uncertainty.uncertainty_measures import softmax

CLASSES = 6
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def draw_predictions(generator: np.random.Generator, images: int) -> tuple[Floats, Labels]:
    """Return perfectly calibrated probabilities [images, CLASSES] and true classes."""
    probabilities = softmax(generator.normal(size=(images, CLASSES)) * 3)
    return probabilities, draw_labels(generator, probabilities)


def draw_labels(generator: np.random.Generator, probabilities: Floats) -> Labels:
    """Draw a true class for each row of probabilities [N, K]."""
    totals = probabilities.cumsum(axis=1)
    labels: Labels = (totals > generator.random((len(totals), 1)) * totals[:, -1:]).argmax(axis=1)
    return labels


def fit_calibrator(
    probabilities: Floats,
    labels: Labels,
    draws: Floats | None = None,
    ood_scores: Floats | None = None,
) -> Calibrator:
    """Return a calibrator of these validation images; by default the OOD scores are 0, 1, 2, …"""
    count = len(labels)
    rows = np.arange(count)
    draws = np.full(count, 0.5) if draws is None else draws
    ood_scores = rows.astype(np.float64) if ood_scores is None else ood_scores
    confidences = probabilities.max(axis=1)
    order = np.argsort(-confidences, kind="stable")
    arrays = CalibrationArrays(
        confidences=confidences[order],
        correct=(probabilities.argmax(axis=1) == labels)[order],
        true_classes=labels[order],
        thr=1 - probabilities[rows, labels][order],
        aps=aps_scores(probabilities, draws)[rows, labels][order],
        ood_scores=ood_scores[order],
    )
    parameters = Calibration(
        images=count,
        temperature=1,
        sampled_temperature=1,
        samples=64,
        seed=0,
        max_risk=0.1,
        guarantee=0.95,
    )
    return Calibrator(parameters, arrays)
