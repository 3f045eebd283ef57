"""Fits a bundle's calibration on its validation images, with the exported graphs.

No test image is used. Only the density of the features is fitted on training images; the typicality
scale is then taken from the validation images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.decomposition import PCA

from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Prediction, Predictor
from model.uncertainty.calibration import (
    DEFAULT_MAX_FALSE_ALARM,
    MAX_CALIBRATION_IMAGES,
    MIN_CALIBRATION_IMAGES,
    Calibration,
    CalibrationArrays,
    Calibrator,
)
from model.uncertainty.ood import RelativeMahalanobis
from model.uncertainty.prediction_sets import aps_scores, uniform_draws
from model.uncertainty.uncertainty_measures import softmax, summarise
from training.data.dataset import Dataset, Split

SAMPLES = 64
SEED = 0
GUARANTEE = 0.95
"""Confidence that abstention keeps its maximum risk."""
_CANDIDATE_RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The default maximum risk is the lowest of these that some threshold keeps, else the last."""
_SHRINKAGE = 0.1
"""Chosen on classes that were left out of the training, docs/experiments.md."""
_MAX_DENSITY_IMAGES = 20_000
_MAX_DENSITY_DIMENSIONS = 256
_BATCH_SIZE = 1_000
_MAX_ARRAY_SIZE = 2**26
"""Number of elements of the largest array in memory."""
_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)

Floats = NDArray[np.float64]


def calibrate(predictor: Predictor, data: Dataset) -> Calibrator | None:
    """Fit the whole calibration; None below MIN_CALIBRATION_IMAGES validation images.

    Args:
        predictor: over the exported graphs, without a calibration.
        data: its training and validation images are used.
    """
    validation = _at_most(MAX_CALIBRATION_IMAGES, data.validation)
    labels = validation.labels
    if len(labels) < MIN_CALIBRATION_IMAGES:
        return None
    rows = np.arange(len(labels))
    prediction = _predict(predictor, validation, rows)
    sampling = FixedSamples(SEED, SAMPLES)
    # As many images as fit into memory, evenly spaced: the images may be sorted by class.
    spaced = rows[:: -(-len(rows) * SAMPLES * predictor.classes // _MAX_ARRAY_SIZE)]
    logits = predictor.sample(prediction.features[spaced], sampling)

    def deterministic_probabilities(temperature: float) -> Floats:
        return softmax(prediction.logits / np.float64(temperature))

    def mean_probabilities(temperature: float) -> Floats:
        mean: Floats = softmax(logits / np.float64(temperature)).mean(axis=1)
        return mean

    temperature = fit_temperature(deterministic_probabilities, labels)
    sampled_temperature = fit_temperature(mean_probabilities, labels[spaced])
    train_rows = _density_rows(data.train, prediction.features.shape[1])
    train_features = _predict(predictor, data.train, train_rows).features
    density = fit_relative_mahalanobis(train_features, data.train.labels[train_rows])
    probabilities = np.concatenate(
        [
            summarise(predictor.sample(features, sampling), sampled_temperature).mean_probabilities
            for features in _batches(prediction.features)
        ]
    )
    arrays = _calibration_arrays(probabilities, labels, prediction.features, density)
    parameters = Calibration(
        images=len(labels),
        temperature=temperature,
        sampled_temperature=sampled_temperature,
        samples=SAMPLES,
        seed=SEED,
        max_risk=_default_max_risk(arrays),
        guarantee=GUARANTEE,
    )
    return Calibrator(parameters, arrays)


def _default_max_risk(arrays: CalibrationArrays) -> float:
    for risk in _CANDIDATE_RISKS:
        if arrays.threshold(risk, DEFAULT_MAX_FALSE_ALARM, GUARANTEE) is not None:
            return risk
    return _CANDIDATE_RISKS[-1]


def _calibration_arrays(
    probabilities: Floats,
    labels: NDArray[np.int64],
    features: NDArray[np.float32],
    density: RelativeMahalanobis,
) -> CalibrationArrays:
    """Compute the scores of N validation images; probabilities [N, K], features [N, F]."""
    rows = np.arange(len(labels))
    confidences = probabilities.max(axis=1)
    order = np.argsort(-confidences, kind="stable")
    return CalibrationArrays(
        confidences=confidences[order],
        correct=(probabilities.argmax(axis=1) == labels)[order],
        true_classes=labels[order],
        thr=(1 - probabilities[rows, labels])[order],
        aps=aps_scores(probabilities, uniform_draws(features))[rows, labels][order],
        ood_scores=density.score(features)[order],
        axes=density.axes,
        centres=density.centres,
        middle=density.middle,
    )


def fit_temperature(probabilities: Callable[[float], Floats], labels: NDArray[np.int64]) -> float:
    """Return the temperature of the lowest NLL on smoothed labels (Guo et al. 2017).

    Without smoothing, a few images that are all predicted correctly have their lowest NLL at
    temperature 0, which claims certainty. The labels are smoothed as if half of a further image
    belonged to the other classes (smoothed targets: Platt 1999; the half: Krichevsky & Trofimov
    1981).

    Args:
        probabilities: function from a temperature to probabilities [N, K].
        labels: the true classes, int64 [N].
    """
    count = len(labels)
    rows = np.arange(count)
    smoothing = 0.5 / (count + 1)

    def nll(log_temperature: float) -> float:
        predicted = probabilities(float(np.exp(log_temperature)))
        log_probabilities = np.log(np.maximum(predicted, np.finfo(np.float64).tiny))
        true_class = log_probabilities[rows, labels]
        other_classes = (log_probabilities.sum(axis=1) - true_class) / (
            log_probabilities.shape[1] - 1
        )
        return -float(((1 - smoothing) * true_class + smoothing * other_classes).mean())

    result = minimize_scalar(nll, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded")
    return float(np.exp(result.x))


def fit_relative_mahalanobis(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> RelativeMahalanobis:
    """Fit the density of training images' features (Lee et al. 2018; Ren et al. 2021).

    More than 256 features are first projected onto their 256 principal components.

    Args:
        features: float32 [N, F].
        labels: the true classes, int64 [N].
    """
    points = features.astype(np.float64)
    width = points.shape[1]
    if width > _MAX_DENSITY_DIMENSIONS:
        count = min(_MAX_DENSITY_DIMENSIONS, len(points))
        projection = PCA(count, random_state=SEED).fit(points).components_.T
        points = points @ projection
    else:
        projection = np.eye(width)
    classes = np.unique(labels)
    means = np.array([points[labels == label].mean(axis=0) for label in classes])
    within_class = whitening(points - means[np.searchsorted(classes, labels)], _SHRINKAGE)
    overall_mean = points.mean(axis=0)
    overall = whitening(points - overall_mean, _SHRINKAGE)
    axes = projection @ np.concatenate([within_class, overall], axis=1)
    return RelativeMahalanobis(axes, means @ within_class, overall_mean @ overall)


def whitening(centred: Floats, shrinkage: float) -> Floats:
    """Return axes [D, D] on which the covariance of points [N, D] is the identity.

    Args:
        centred: points [N, D] whose mean is 0.
        shrinkage: of the covariance towards a multiple of the identity, 0..1 (Ledoit & Wolf 2004).
    """
    covariance = centred.T @ centred / len(centred)
    sphere = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    eigenvalues, eigenvectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * sphere)
    # Features that are constant have an eigenvalue of 0.
    smallest = np.finfo(np.float32).eps * max(eigenvalues.max(), 1)
    axes: Floats = eigenvectors / np.sqrt(np.maximum(eigenvalues, smallest))
    return axes


def _at_most(count: int, split: Split) -> Split:
    """Return `count` images, evenly spaced, of a split that has more; it may be sorted by class."""
    if len(split) <= count:
        return split
    return split.take(np.linspace(0, len(split) - 1, count).astype(np.int64))


def _density_rows(train: Split, width: int) -> NDArray[np.int64]:
    """Draw the rows of the training images whose `width` features the density is fitted on."""
    count = min(len(train), _MAX_DENSITY_IMAGES, _MAX_ARRAY_SIZE // width)
    rows = np.random.Generator(np.random.PCG64(SEED)).permutation(len(train))[:count]
    return np.sort(rows)


def _predict(predictor: Predictor, split: Split, rows: NDArray[np.int64]) -> Prediction:
    return predictor.predict(to_float(split.images[rows]))


def _batches(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[start : start + _BATCH_SIZE] for start in range(0, len(rows), _BATCH_SIZE)]
