"""Fits a bundle's calibration on its validation images, with the exported graphs.

No test image is used. Only the out-of-distribution (OOD) score is fitted on training images; the
typicality scale is then taken from the validation images.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from model.dropout.sampling_methods import FixedSamples
from model.errors import ExportError
from model.images.preprocessing import to_float
from model.inference.prediction import Prediction
from model.inference.predictor import Predictor
from model.uncertainty.calibration import (
    DEFAULT_MAX_FALSE_ALARM,
    MAX_CALIBRATION_IMAGES,
    MIN_CALIBRATION_IMAGES,
    Calibration,
    CalibrationArrays,
    Calibrator,
)
from model.uncertainty.prediction_sets import aps_scores, uniform_draws
from model.uncertainty.uncertainty_measures import softmax, summarise
from training.data.dataset import Dataset, Split
from training.evaluation.metrics import SAMPLES, SEED
from training.export.cross_fitted_outputs import HeldOut
from training.export.mc_statistics_graph import mc_statistics_of
from training.export.ood_graph import add_score, count_statistics, read_statistics
from training.export.ood_score import fit_ood_score

logger = logging.getLogger(__name__)

GUARANTEE = 0.95
"""Confidence that abstention keeps its maximum risk."""
_CANDIDATE_RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The default maximum risk is the lowest of these that some threshold keeps, else the last."""
_MAX_SCORE_IMAGES = 20_000
_SEED = 0
_BATCH_SIZE = 1_000
_IMAGES_AT_ONCE = 64
"""Images that are float32 at the same time: all of them may need more memory than there is."""
_MAX_ARRAY_SIZE = 2**26
"""Number of elements of the largest array in memory."""
_LOG_TEMPERATURE_BOUNDS = (-9.0, 6.0)
"""Of the temperature in units of the logits' scale; that of a good network is about -2. The search
begins at -3.3 and 0.3: at lower temperatures the samples of dropout are votes, and the NLL flat."""

Floats = NDArray[np.float64]


def can_calibrate(data: Dataset) -> bool:
    """Return whether there are enough validation images for a calibration."""
    return len(data.validation) >= MIN_CALIBRATION_IMAGES


def warn_if_uncalibrated(data: Dataset) -> None:
    """Log what a bundle lacks that has too few validation images for a calibration."""
    if not can_calibrate(data):
        logger.warning(
            "Warning: the bundle stays uncalibrated, with %d validation images where %d are "
            "needed: typicality, prediction_set and abstain will be null. Add labelled images.",
            *(len(data.validation), MIN_CALIBRATION_IMAGES),
        )


def add_ood_score(graph: Path, data: Dataset, pixels: int) -> None:
    """Fit the out-of-distribution score on training images, and put it into the graph.

    Args:
        graph: file of a graph that gives the statistics of images.
        data: of its training images, at most _MAX_SCORE_IMAGES are used.
        pixels: how many of the statistics are of the pixels.
    """
    rows = _score_rows(data.train, count_statistics(graph))
    values, logits = read_statistics(graph, _images_in_batches(data.train, rows))
    add_score(graph, fit_ood_score(values, logits, data.train.labels[rows], pixels))


def add_cross_fitted_score(
    graph: Path,
    data: Dataset,
    logits: NDArray[np.float32],
    folds: NDArray[np.int64],
    pixels: int,
) -> NDArray[np.float32]:
    """Do as `add_ood_score`, and return the score of each training image fitted without its fold.

    Args:
        graph: file of a graph that gives the statistics of images.
        data: its training images are used.
        logits: float32 [N, K], of networks that were not trained on the image's fold.
        folds: int64 [N], the fold of each training image.
        pixels: how many of the statistics are of the pixels.

    Returns:
        float32 [N].
    """
    labels = data.train.labels
    values, own_logits = read_statistics(
        graph, _images_in_batches(data.train, np.arange(len(labels)))
    )
    scores = np.empty(len(labels), np.float32)
    for fold in np.unique(folds):
        inside = folds == fold
        fitted = fit_ood_score(values[~inside], logits[~inside], labels[~inside], pixels)
        scores[inside] = fitted.score(values[inside], logits[inside])
    rows = _score_rows(data.train, values.shape[1])
    add_score(graph, fit_ood_score(values[rows], own_logits[rows], labels[rows], pixels))
    return scores


def calibrate(predictor: Predictor, data: Dataset) -> Calibrator | None:
    """Fit the whole calibration; None below MIN_CALIBRATION_IMAGES validation images.

    Args:
        predictor: over the exported graphs, without a calibration.
        data: its training and validation images are used.
    """
    if not can_calibrate(data):
        return None
    rows = _rows_for_calibration(len(data.validation))
    prediction = Prediction.concatenate(
        [predictor.predict(images) for images in _images_in_batches(data.validation, rows)]
    )
    sampling = FixedSamples(SEED, SAMPLES)
    return calibrate_held_out(
        HeldOut(
            data.validation.labels[rows],
            prediction.logits,
            prediction.features,
            prediction.ood_scores,
            sampling,
            lambda rows: predictor.sample(prediction.features[rows], sampling),
        )
    )


def calibrate_held_out(held_out: HeldOut) -> Calibrator:
    """Fit the whole calibration to outputs for images that were not trained on."""
    labels, sampling = held_out.labels, held_out.sampling
    rows = np.arange(len(labels))
    classes = held_out.logits.shape[1]
    # As many images as fit into memory, evenly spaced: the images may be sorted by class.
    spaced = rows[:: -(-len(rows) * sampling.samples * classes // _MAX_ARRAY_SIZE)]
    logits, sampled_logits = held_out.logits[:, np.newaxis], held_out.sample(spaced)
    temperature = fit_temperature(logits, labels)
    sampled_temperature = fit_temperature(sampled_logits, labels[spaced])
    if _is_at_bound(temperature, logits) or _is_at_bound(sampled_temperature, sampled_logits):
        logger.warning(
            "Warning: no temperature calibrates these answers, as where they are no better than "
            "guessed; check the labels, and the order of the classes."
        )
    statistics = mc_statistics_of(classes)
    probabilities = np.concatenate(
        [
            summarise(statistics, held_out.sample(batch), sampled_temperature).mean_probabilities
            for batch in _batches(rows)
        ]
    )
    arrays = _calibration_arrays(probabilities, held_out)
    parameters = Calibration(
        images=len(labels),
        temperature=temperature,
        sampled_temperature=sampled_temperature,
        samples=sampling.samples,
        seed=sampling.seed,
        max_risk=_default_max_risk(arrays),
        guarantee=GUARANTEE,
    )
    return Calibrator(parameters, arrays)


def _default_max_risk(arrays: CalibrationArrays) -> float:
    for risk in _CANDIDATE_RISKS:
        if arrays.threshold(risk, DEFAULT_MAX_FALSE_ALARM, GUARANTEE) is not None:
            return risk
    logger.warning(
        "Warning: no risk up to %.0f %% can be shown with these validation images, so every "
        "prediction abstains; add labelled images, improve the network, or request a higher "
        "max_risk.",
        100 * _CANDIDATE_RISKS[-1],
    )
    return _CANDIDATE_RISKS[-1]


def _calibration_arrays(probabilities: Floats, held_out: HeldOut) -> CalibrationArrays:
    """Compute the scores of N validation images; mean probabilities [N, K]."""
    labels = held_out.labels
    if held_out.ood_scores is None:
        raise ExportError("The graph computes no out-of-distribution scores; export it with them.")
    rows = np.arange(len(labels))
    confidences = probabilities.max(axis=1)
    order = np.argsort(-confidences, kind="stable")
    return CalibrationArrays(
        confidences=confidences[order],
        correct=(probabilities.argmax(axis=1) == labels)[order],
        true_classes=labels[order],
        thr=(1 - probabilities[rows, labels])[order],
        aps=aps_scores(probabilities, uniform_draws(held_out.features))[rows, labels][order],
        ood_scores=held_out.ood_scores[order].astype(np.float64),
    )


def mean_probabilities(logits: NDArray[np.floating], temperature: float) -> Floats:
    """Return the mean over samples of the softmax of logits / temperature: [N, T, K] -> [N, K]."""
    mean: Floats = softmax(logits, temperature).mean(axis=1)
    return mean


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature of the lowest NLL on smoothed labels (Guo et al. 2017).

    Without smoothing, a few images that are all predicted correctly have their lowest NLL at
    temperature 0, which claims certainty. The labels are smoothed as if half of a further image
    belonged to the other classes (smoothed targets: Platt 1999; the half: Krichevsky & Trofimov
    1981).

    The search is around the scale of the logits, so c times the logits get c times the temperature.

    Args:
        logits: [N, T, K] of T samples, whose probabilities are averaged; T = 1 without dropout.
        labels: the true classes, int64 [N].
    """
    count, scale = len(labels), _scale(logits)
    rows = np.arange(count)
    smoothing = 0.5 / (count + 1)

    def nll(log_temperature: float) -> float:
        predicted = mean_probabilities(logits, scale * float(np.exp(log_temperature)))
        log_probabilities = np.log(np.maximum(predicted, np.finfo(np.float64).tiny))
        true_class = log_probabilities[rows, labels]
        other_classes = (log_probabilities.sum(axis=1) - true_class) / (
            log_probabilities.shape[1] - 1
        )
        return -float(((1 - smoothing) * true_class + smoothing * other_classes).mean())

    result = minimize_scalar(nll, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded")
    return scale * float(np.exp(result.x))


def _scale(logits: NDArray[np.floating]) -> float:
    """Return how far the highest mean logit of an image leads: the geometric mean without ties.

    Neither a few huge leads, nor classes that are masked by a huge negative logit, change it much.
    """
    highest = np.partition(logits.mean(axis=1, dtype=np.float64), -2, axis=1)[:, -2:]
    leads = highest[:, 1] - highest[:, 0]
    leads = leads[leads > 0]
    return float(np.exp(np.log(leads).mean())) if leads.size else 1.0


def _is_at_bound(temperature: float, logits: NDArray[np.floating]) -> bool:
    """Return whether the search for a temperature ended where it may not go on."""
    lowest, highest = _LOG_TEMPERATURE_BOUNDS
    return not lowest + 0.01 < np.log(temperature / _scale(logits)) < highest - 0.01


def _rows_for_calibration(images: int) -> NDArray[np.int64]:
    """Return at most MAX_CALIBRATION_IMAGES rows, evenly spaced: they may be sorted by class."""
    count = min(images, MAX_CALIBRATION_IMAGES)
    return np.linspace(0, images - 1, count).astype(np.int64)


def _score_rows(train: Split, width: int) -> NDArray[np.int64]:
    """Draw the rows of the training images whose `width` statistics the OOD score is fitted to."""
    count = min(len(train), _MAX_SCORE_IMAGES, _MAX_ARRAY_SIZE // width)
    rows = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(train))[:count]
    return np.sort(rows)


def _images_in_batches(split: Split, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Read the images at `rows` batch by batch: float32 [B, C, H, W] in 0..1."""
    return (to_float(split.images[batch]) for batch in _batches(rows, _IMAGES_AT_ONCE))


def _batches(rows: NDArray[np.int64], size: int = _BATCH_SIZE) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
