"""Fits a bundle's calibration on its validation images, with the exported graphs.

Nothing of it sees a test image. Only the density of the features is fitted on training images, and
where the validation images lie in it is counted on those.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from sklearn.decomposition import PCA

from model.dropout.sampling import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Prediction, Predictor
from model.uncertainty.calibration import (
    FEWEST_IMAGES,
    RISK_STARTS,
    Arrays,
    Calibration,
    Calibrator,
    aps_scores,
    uniform_draws,
)
from model.uncertainty.ood import RelativeMahalanobis
from model.uncertainty.summary import softmax, summarise
from training.data.dataset import DataSet, Split

SAMPLES = 64
SEED = 0
GUARANTEE = 0.95
_RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The default is the least of these that some threshold keeps, or the last."""
_SHRINKAGE = 0.1
"""Chosen on classes held out of the training, docs/experiments.md."""
_DENSITY_IMAGES = 20_000
_DENSITY_AXES = 256
_CHUNK = 1_000
_CELLS = 2**26
"""Numbers of the largest array."""
_LOGARITHMS = (-3.0, 3.0)  # of temperatures

Floats = NDArray[np.float64]


def calibrate(predictor: Predictor, data: DataSet) -> Calibrator | None:
    """Fit everything; None where there are fewer than FEWEST_IMAGES validation images.

    Args:
        predictor: over the exported graphs, not calibrated yet.
        data: its training and validation parts are used, its test part is not.
    """
    labels = data.validation.labels
    if len(labels) < FEWEST_IMAGES:
        return None
    every = np.arange(len(labels))
    prediction = _predict(predictor, data.validation, every)
    how = FixedSamples(SEED, SAMPLES)
    # As many images as fit into memory, of all classes also where they come sorted by class.
    few = every[:: -(-len(every) * SAMPLES * predictor.classes // _CELLS)]
    logits = predictor.sample(prediction.features[few], how)

    def plain(temperature: float) -> Floats:
        return softmax(prediction.logits / np.float64(temperature))

    def sampled(temperature: float) -> Floats:
        mean: Floats = softmax(logits / np.float64(temperature)).mean(axis=1)
        return mean

    temperature = best_temperature(plain, labels)
    sampled_temperature = best_temperature(sampled, labels[few])
    known = _density_rows(data.train, prediction.features.shape[1])
    density = fit_density(_predict(predictor, data.train, known).features, data.train.labels[known])
    probabilities = np.concatenate(
        [
            summarise(predictor.sample(features, how), sampled_temperature).mean_probabilities
            for features in _chunks(prediction.features)
        ]
    )
    arrays = _arrays(probabilities, labels, prediction.features, density)
    numbers = Calibration(
        images=len(labels),
        temperature=temperature,
        sampled_temperature=sampled_temperature,
        samples=SAMPLES,
        seed=SEED,
        max_risk=next((each for each in _RISKS if arrays.threshold(each) is not None), _RISKS[-1]),
        guarantee=GUARANTEE,
    )
    return Calibrator(numbers, arrays)


def _arrays(
    probabilities: Floats,
    labels: NDArray[np.int64],
    features: NDArray[np.float32],
    density: RelativeMahalanobis,
) -> Arrays:
    """Sort what is known of N validation images; probabilities [N, K], features [N, F]."""
    confidences, bounds = risk_bounds(probabilities, labels)
    rows = np.arange(len(labels))
    return Arrays(
        thr=np.sort(1 - probabilities[rows, labels]),
        aps=np.sort(aps_scores(probabilities, uniform_draws(features))[rows, labels]),
        confidences=confidences,
        risk_bounds=bounds,
        axes=density.axes,
        centres=density.centres,
        middle=density.middle,
        nearness=np.sort(density.score(features)),
    )


def best_temperature(probabilities: Callable[[float], Floats], labels: NDArray[np.int64]) -> float:
    """Return the temperature with the least NLL (Guo et al. 2017), and half an image's doubt.

    Where few images are all right, the least NLL is that of certainty. So half an image more is
    taken to have any other class (smoothed targets: Platt 1999, with Krichevsky & Trofimov's half).

    Args:
        probabilities: temperature -> probabilities [N, K].
        labels: int64 [N].
    """
    count = len(labels)
    rows = np.arange(count)
    doubt = 0.5 / (count + 1)

    def nll(logarithm: float) -> float:
        given = probabilities(float(np.exp(logarithm)))
        logs = np.log(np.maximum(given, np.finfo(np.float64).tiny))
        true = logs[rows, labels]
        others = (logs.sum(axis=1) - true) / (logs.shape[1] - 1)
        return -float(((1 - doubt) * true + doubt * others).mean())

    found = minimize_scalar(nll, bounds=_LOGARITHMS, method="bounded")
    return float(np.exp(found.x))


def risk_bounds(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Bound the error rate above every confidence (Geifman & El-Yaniv 2017, lemma 3.1).

    The search for a threshold has RISK_STARTS starts, so each bound may fail with that part of what
    the guarantee leaves.

    Returns:
        Confidences [N], descending, and the bound of the images at least as confident [N].
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    wrong = np.cumsum(probabilities.argmax(axis=1)[order] != labels[order])
    last = np.searchsorted(-confidence, -confidence, side="right") - 1  # of equal ones
    errors, images = wrong[last], last + 1
    bounds = np.ones(len(labels))
    some = errors < images
    level = 1 - (1 - GUARANTEE) / RISK_STARTS
    bounds[some] = beta.ppf(level, errors[some] + 1, images[some] - errors[some])
    return confidence, bounds


def fit_density(features: NDArray[np.float32], labels: NDArray[np.int64]) -> RelativeMahalanobis:
    """Fit the density of features [N, F] of training images, int64 labels [N].

    More than 256 features are first projected on their 256 principal components.
    """
    points = features.astype(np.float64)
    width = points.shape[1]
    if width > _DENSITY_AXES:
        count = min(_DENSITY_AXES, len(points))
        principal = PCA(count, random_state=SEED).fit(points).components_.T
        points = points @ principal
    else:
        principal = np.eye(width)
    classes = np.unique(labels)
    means = np.array([points[labels == label].mean(axis=0) for label in classes])
    within = whitening(points - means[np.searchsorted(classes, labels)], _SHRINKAGE)
    middle = points.mean(axis=0)
    overall = whitening(points - middle, _SHRINKAGE)
    axes = principal @ np.concatenate([within, overall], axis=1)
    return RelativeMahalanobis(axes, means @ within, middle @ overall)


def whitening(centred: Floats, shrinkage: float) -> Floats:
    """Return axes [D, D] on which the covariance of points [N, D] is the identity.

    Args:
        centred: [N, D], with a mean of 0.
        shrinkage: of the covariance towards a sphere, 0..1.
    """
    covariance = centred.T @ centred / len(centred)
    sphere = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    lengths, directions = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * sphere)
    least = np.finfo(np.float32).eps * max(lengths.max(), 1)  # where features never move
    axes: Floats = directions / np.sqrt(np.maximum(lengths, least))
    return axes


def _density_rows(train: Split, width: int) -> NDArray[np.int64]:
    """Draw the rows of training images for the density of so many features, sorted."""
    count = min(len(train), _DENSITY_IMAGES, _CELLS // width)
    rows = np.random.Generator(np.random.PCG64(SEED)).permutation(len(train))[:count]
    return np.sort(rows)


def _predict(predictor: Predictor, part: Split, rows: NDArray[np.int64]) -> Prediction:
    return predictor.predict(to_float(part.images[rows]))


def _chunks(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
