"""Sampled logits -> mean probabilities and what they disagree about. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.

The entropy of a mean of T samples is too low on average, by about half the sum over classes of the
mean's variance over the mean (the delta method; Miller 1955 for counts). `summarise` adds that to
the mutual information and takes it from the expected entropy, so the predictive entropy stays that
of the probabilities reported beside it, and the three still add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.sampling_error import LogitNormal, odds

Floats = NDArray[np.float64]
_TINY = np.finfo(np.float64).tiny


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


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Softmax over the last axis, in float64; any shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    probabilities = np.exp(shifted, out=shifted)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Floats) -> Floats:
    """Shannon entropy over the last axis in nats; 0 ln 0 = 0."""
    result: Floats = -(probabilities * _logarithm(probabilities)).sum(axis=-1)
    return result


class Samples:
    """Probabilities of T samples, float64 [N, T, K], and what they come from."""

    def __init__(self, logits: NDArray[np.floating], temperature: float) -> None:
        """Take the softmax of logits [N, T, K] divided by `temperature`."""
        exponents = logits.astype(np.float64)
        exponents -= exponents.max(axis=-1, keepdims=True)
        exponents /= temperature
        self.exponents = exponents
        self.powers = np.exp(exponents)
        self.probabilities: Floats = self.powers / self.powers.sum(axis=-1, keepdims=True)
        self.mean = _mean_over_samples(self.probabilities)

    @cached_property
    def divergences(self) -> Floats:
        """KL(sample, mean) in nats, [N, T]: their mean is the mutual information."""
        ratios = _logarithm(self.probabilities) - _logarithm(self.mean)[:, np.newaxis]
        divergences: Floats = (self.probabilities * ratios).sum(axis=-1)
        return divergences


def integrate(logits: NDArray[np.floating], temperature: float = 1.0) -> Uncertainty:
    """Summarise logits [N, T, K] of points that stand for a distribution; errors are NaN.

    Points that are all equal (p = 0) have a spread and a mutual information of exactly 0.
    """
    return _integrate(Samples(logits, temperature))


def summarise(logits: NDArray[np.float32], temperature: float = 1.0) -> Uncertainty:
    """Summarise the logits of T random samples, float32 [N, T, K], divided by `temperature`."""
    samples = Samples(logits, temperature)
    plain = _integrate(samples)
    count = logits.shape[1]
    if count == 1:
        return plain
    variance = np.square(plain.probability_std) * count / (count - 1)
    bias = (variance / np.maximum(samples.mean, _TINY)).sum(axis=-1) / (2 * count)
    information = np.minimum(plain.mutual_information + bias, plain.predictive_entropy)
    fitted = LogitNormal(odds(samples.exponents, samples.powers))
    spread = samples.divergences.var(axis=1, ddof=1)
    spread += fitted.divergence_variance(plain.labels, samples.mean)
    return replace(
        plain,
        standard_error=np.sqrt(np.maximum(variance, fitted.variance()) / count),
        expected_entropy=plain.predictive_entropy - information,
        mutual_information=information,
        mutual_information_error=np.sqrt(spread / count),
    )


def _integrate(samples: Samples) -> Uncertainty:
    probabilities, mean = samples.probabilities, samples.mean
    labels = mean.argmax(axis=-1)
    predictive = entropy(mean)
    information = np.clip(_mean_over_samples(samples.divergences), 0, predictive)
    return Uncertainty(
        labels=labels,
        mean_probabilities=mean,
        probability_std=np.sqrt(np.square(probabilities - mean[:, np.newaxis]).mean(axis=1)),
        standard_error=np.full_like(mean, np.nan),
        predictive_entropy=predictive,
        expected_entropy=predictive - information,
        mutual_information=information,
        mutual_information_error=np.full_like(predictive, np.nan),
        variation_ratio=(probabilities.argmax(axis=-1) != labels[:, np.newaxis]).mean(axis=1),
        samples_used=np.full_like(labels, probabilities.shape[1]),
        settled=np.zeros(len(labels), dtype=np.bool_),
        typicality=np.full_like(predictive, np.nan),
        set_draws=np.full_like(predictive, np.nan),
    )


def _logarithm(values: Floats) -> Floats:
    return np.log(np.maximum(values, _TINY))


def _mean_over_samples(values: Floats) -> Floats:
    first = values[:, :1]
    mean: Floats = first[:, 0] + (values - first).mean(axis=1)
    return mean
