"""Sampled logits -> mean probabilities and what they disagree about. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.

Single samples are float32: several times faster, and as exact as their logits. What is reported is
float64: mean probabilities are divided by their sum before anything is computed from them.

The entropy of a mean of T samples is too low on average, by about half the sum over classes of the
mean's variance over the mean (the delta method; Miller 1955 for counts). `summarise` adds that to
the mutual information and takes it from the expected entropy, so the predictive entropy stays that
of the probabilities reported beside it, and the three still add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from model.sampling_error import logit_normal_variances

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
_TINY = np.finfo(np.float64).tiny
_SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """What T samples say of N images over K classes; all float64 but `labels`.

    Attributes:
        labels: int64 [N], the class of the highest mean probability.
        mean_probabilities: [N, K], mean over samples of the softmax.
        probability_std: [N, K], standard deviation over samples (divisor T).
        standard_error: [N, K], of the mean, from the sampling alone; NaN where nothing, or a single
            sample, was drawn. It is the error of T independent samples, and as orthogonal ones are
            better it overstates theirs: a safe bound.
        predictive_entropy: [N], H(mean), 0..ln K (Gal 2016).
        expected_entropy: [N], predictive entropy - mutual information, the aleatoric part (Depeweg
            et al. 2018).
        mutual_information: [N], H(mean) - mean of H(sample), the epistemic part (Houlsby et al.
            2011), 0..predictive entropy.
        mutual_information_error: [N], its standard error, as above.
        variation_ratio: [N], share of samples whose label is another, 0..1-1/K (Freeman 1965).
        samples_used: int64 [N], how many samples, or points, these figures are of.
        settled: bool [N], whether sampling stopped because the label was settled.
        typicality: [N], share of validation images that lie farther out, 0..1; NaN: uncalibrated.
        set_draws: [N], what `model.calibration` draws for prediction sets; NaN: uncalibrated.
    """

    labels: NDArray[np.int64]
    mean_probabilities: Floats
    probability_std: Floats
    standard_error: Floats
    predictive_entropy: Floats
    expected_entropy: Floats
    mutual_information: Floats
    mutual_information_error: Floats
    variation_ratio: Floats
    samples_used: NDArray[np.int64]
    settled: NDArray[np.bool_]
    typicality: Floats
    set_draws: Floats

    def take(self, rows: slice | NDArray[np.int64]) -> "Uncertainty":
        """Return some of the rows."""
        return Uncertainty(*(getattr(self, field.name)[rows] for field in fields(self)))


def joined(parts: Sequence[Uncertainty]) -> Uncertainty:
    """Put the rows of several summaries one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Uncertainty))
    return Uncertainty(*map(np.concatenate, columns))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Softmax of logits / temperature over the last axis, in float64; any shape."""
    powers: Floats = np.divide(logits, temperature, dtype=np.float64)
    powers -= np.maximum.reduce(powers, axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def entropy(probabilities: Floats) -> Floats:
    """Shannon entropy over the last axis in nats; 0 ln 0 = 0."""
    result: Floats = -(probabilities * _logarithm(probabilities)).sum(axis=-1)
    return result


class Samples:
    """Moments of what T samples say, each alone; exact where the samples are all equal."""

    def __init__(self, logits: NDArray[np.floating], temperature: float) -> None:
        """Take logits [N, T, K], divided by `temperature`."""
        classes = logits.shape[2]
        self.figures, self.likeliest = _figures(logits, temperature)
        """[2K + 1, N, T], as differences from the first sample; and [K, N, T]."""
        first = self.figures[..., :1].copy()
        self.figures -= first
        shifts, squares = _moments(self.figures)
        means = np.add(first[..., 0].T, shifts.T, dtype=np.float64, order="C")
        variances = squares.T.astype(np.float64, order="C")
        self.mean = means[:, :classes] / np.add.reduce(means[:, :classes], axis=1, keepdims=True)
        self.variance = variances[:, :classes]
        """[N, K], as the mean, of the probabilities; unbiased."""
        self.centres, self.spreads = means[:, classes:-1], variances[:, classes:-1]
        """Mean and variance of the probabilities' logits, [N, K]."""
        self.certainty = means[:, -1]
        """Mean negative entropy, [N]."""
        self.logarithms = _logarithm(self.mean)
        self.labels = self.mean.argmax(axis=1)
        self.scatter = np.add.reduce(self.variance / np.maximum(self.mean, _TINY), axis=1)
        """[N], 0 where samples are equal; over 2T it is what H(mean) is too low by."""

    @property
    def count(self) -> int:
        """T, or 2 for a single sample."""
        return len(self.figures[0, 0])

    def errors(self) -> tuple[Floats, Floats]:
        """Return standard errors of the mean [N, K] and of the mutual information [N]."""
        tails, label_tail = logit_normal_variances(
            self.centres, self.spreads, self.count, self.labels, self.mean
        )
        weights = self.logarithms.T.astype(np.float32)[..., np.newaxis]
        expected = np.add.reduce(self.figures[: len(weights)] * weights)
        _, divergence = _moments(self.figures[-1] - expected)  # KL(sample, mean), but a constant
        return (
            np.sqrt(np.maximum(self.variance, tails) / self.count),
            np.sqrt((divergence + label_tail) / self.count),
        )


def _figures(logits: NDArray[np.floating], temperature: float) -> tuple[Singles, Singles]:
    """Return what each sample says, classes first: sums over them then add whole rows.

    Returns:
        float32 [2K + 1, N, T]: K probabilities, their logits ln p/(1 - p), exact also where p
        rounds to 1, and the negative entropy; and float32 [K, N, T]: 1 for the class of the highest
        probability, or several such, else 0.
    """
    images, count, classes = logits.shape
    # A single sample is taken twice: alone, NumPy would add its classes up in another order.
    figures = np.empty((2 * classes + 1, images, max(count, 2)), np.float32)
    probabilities, exponents = figures[:classes], figures[classes:-1]
    np.multiply(logits.transpose(2, 0, 1), np.float32(1 / temperature), out=exponents)
    exponents -= np.maximum.reduce(exponents)
    np.exp(exponents, out=probabilities)
    # Ones and smaller powers are added up apart: a sum of both would round the latter off.
    likeliest = np.floor(probabilities)
    lesser = probabilities - likeliest
    ones, rest = np.add.reduce(likeliest), np.add.reduce(lesser)
    np.maximum(rest, _SMALLEST, out=rest)
    total = ones + rest
    probabilities /= total
    products = probabilities * exponents
    np.subtract(np.add.reduce(products), np.log1p(rest + (ones - 1)), out=figures[-1])
    others = np.subtract(rest, lesser, out=lesser)
    others += np.subtract(ones, likeliest, out=products)
    exponents -= np.log(others, out=others)
    return figures, likeliest


def _moments(differences: Singles) -> tuple[Singles, Singles]:
    """Return mean and unbiased variance of differences from a first sample: [..., T] -> [...]."""
    count = differences.shape[-1]
    sums = np.vecdot(differences, np.ones(count, np.float32))
    means = sums / np.float32(count)
    squares = np.vecdot(differences, differences)
    squares -= sums * means
    squares /= np.float32(count - 1)
    return means, np.maximum(squares, 0, out=squares)


def integrate(logits: NDArray[np.floating], temperature: float = 1.0) -> Uncertainty:
    """Summarise logits [N, T, K] of points that stand for a distribution; errors are NaN.

    Points that are all equal (p = 0) have a spread and a mutual information of exactly 0.
    """
    samples = Samples(logits, temperature)
    unknown = np.full_like(samples.mean, np.nan), np.full_like(samples.scatter, np.nan)
    return _summary(samples, logits.shape[1], samples.certainty, unknown)


def summarise(logits: NDArray[np.float32], temperature: float = 1.0) -> Uncertainty:
    """Summarise the logits of T random samples, float32 [N, T, K], divided by `temperature`."""
    count = logits.shape[1]
    if count == 1:
        return integrate(logits, temperature)
    samples = Samples(logits, temperature)
    corrected = samples.certainty + samples.scatter / (2 * count)
    return _summary(samples, count, corrected, samples.errors())


def _summary(
    samples: Samples, count: int, certainty: Floats, errors: tuple[Floats, Floats]
) -> Uncertainty:
    predictive = 0 - np.vecdot(samples.mean, samples.logarithms)
    information = np.minimum(np.maximum(predictive + certainty, 0), predictive)
    information *= samples.scatter > 0
    images = len(predictive)
    agreed = np.add.reduce(samples.likeliest[samples.labels, np.arange(images)], axis=1)
    unknown = np.full(images, np.nan)
    return Uncertainty(
        labels=samples.labels,
        mean_probabilities=samples.mean,
        probability_std=np.sqrt(samples.variance * (1 - 1 / samples.count)),
        standard_error=errors[0],
        predictive_entropy=predictive,
        expected_entropy=predictive - information,
        mutual_information=information,
        mutual_information_error=errors[1],
        variation_ratio=1 - agreed / np.float64(samples.count),
        samples_used=np.full(images, count),
        settled=np.zeros(images, dtype=np.bool_),
        typicality=unknown,
        set_draws=unknown,
    )


def _logarithm(values: Floats) -> Floats:
    return np.log(np.maximum(values, _TINY))
