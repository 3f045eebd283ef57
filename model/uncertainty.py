"""Sampled logits -> mean probabilities and what they disagree about. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """What T samples say of N images over K classes; all float64 but `labels`.

    Attributes:
        labels: int64 [N], the class of the highest mean probability.
        mean_probabilities: [N, K], mean over samples of the softmax.
        probability_std: [N, K], standard deviation over samples (divisor T).
        standard_error: [N, K], of the mean, s/sqrt(T) with divisor T - 1 inside s; NaN for T = 1.
            It is the error that T independent samples would have, and as the samples here are
            better than independent it overstates theirs: a safe bound.
        predictive_entropy: [N], H(mean), 0..ln K (Gal 2016).
        expected_entropy: [N], mean of H(sample), the aleatoric part (Depeweg et al. 2018).
        mutual_information: [N], predictive - expected entropy, the epistemic part (Houlsby et al.
            2011), 0..ln K.
        variation_ratio: [N], share of samples whose label is another, 0..1-1/K (Freeman 1965).
    """

    labels: NDArray[np.int64]
    mean_probabilities: Floats
    probability_std: Floats
    standard_error: Floats
    predictive_entropy: Floats
    expected_entropy: Floats
    mutual_information: Floats
    variation_ratio: Floats

    def take(self, rows: slice) -> "Uncertainty":
        """Return some of the rows."""
        return Uncertainty(*(getattr(self, field.name)[rows] for field in fields(self)))


def joined(parts: Sequence[Uncertainty]) -> Uncertainty:
    """Put the rows of several summaries one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Uncertainty))
    return Uncertainty(*map(np.concatenate, columns))


def softmax(logits: NDArray[np.float32]) -> Floats:
    """Softmax over the last axis, in float64; any shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    probabilities = np.exp(shifted, out=shifted)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Floats) -> Floats:
    """Shannon entropy over the last axis in nats; 0 ln 0 = 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    result: Floats = -(probabilities * logarithms).sum(axis=-1)
    return result


def summarise(logits: NDArray[np.float32]) -> Uncertainty:
    """Summarise sampled logits, float32 [N, T, K].

    Means are taken of differences from the first sample, so samples that are all equal (p = 0)
    have a spread and a mutual information of exactly 0.
    """
    samples = logits.shape[1]
    probabilities = softmax(logits)
    mean = _mean_over_samples(probabilities)
    variance = np.square(probabilities - mean[:, np.newaxis]).mean(axis=1)
    predictive = entropy(mean)
    expected = np.minimum(_mean_over_samples(entropy(probabilities)), predictive)
    labels = mean.argmax(axis=-1)
    return Uncertainty(
        labels=labels,
        mean_probabilities=mean,
        probability_std=np.sqrt(variance),
        standard_error=np.sqrt(variance / (samples - 1)) if samples > 1 else mean * np.nan,
        predictive_entropy=predictive,
        expected_entropy=expected,
        mutual_information=predictive - expected,
        variation_ratio=(probabilities.argmax(axis=-1) != labels[:, np.newaxis]).mean(axis=1),
    )


def _mean_over_samples(values: Floats) -> Floats:
    first = values[:, :1]
    mean: Floats = first[:, 0] + (values - first).mean(axis=1)
    return mean
