"""How wrong a mean of T samples may be. Knows probabilities alone.

Most probabilities are tiny in nearly every sample and large in a rare one, so the spread of 64
samples misses most of what makes their mean wrong: intervals built on it cover half of what they
claim. A probability's logit has no such tail. It is close to normal, so T samples tell its mean and
variance well, and the spread of the probability, or of a function of it, follows by Gauss-Hermite
quadrature over that normal distribution (the logit-normal: Atchison & Shen 1980).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_WIDENING = 3.0
"""Few samples know the deviation itself poorly, and the tail depends on it exponentially: widened
by 1 + 3/T, stated 95 % intervals covered as much from 8 samples on (python -m benchmarks.sampling).
"""
_TINY = np.finfo(np.float64).tiny
_STEEPEST = 700.0
"""Logits beyond this would overflow exp."""


def odds(exponents: Floats, powers: Floats) -> Floats:
    """Return ln p/(1 - p) of p = powers / their sum over K, exact also where p rounds to 1.

    Args:
        exponents: [..., K], at most 0, one of them 0.
        powers: [..., K], exp(exponents).
    """
    likeliest = powers.argmax(axis=-1, keepdims=True)
    lesser = powers.copy()
    np.put_along_axis(lesser, likeliest, 0, axis=-1)
    rest = lesser.sum(axis=-1, keepdims=True)
    others = rest + (np.take_along_axis(powers, likeliest, axis=-1) - lesser)
    np.put_along_axis(others, likeliest, rest, axis=-1)
    logits: Floats = exponents - np.log(np.maximum(others, _TINY))
    return logits


class LogitNormal:
    """Normal distributions fitted to the logits of sampled probabilities: [N, T, K], T >= 2."""

    def __init__(self, logits: Floats) -> None:
        first = logits[:, :1]
        centre = first[:, 0] + (logits - first).mean(axis=1)
        deviation = logits.std(axis=1, ddof=1, mean=centre[:, np.newaxis])
        deviation *= 1 + _WIDENING / logits.shape[1]
        points = centre[..., np.newaxis] + deviation[..., np.newaxis] * _NODES
        self._points = np.clip(points, -_STEEPEST, _STEEPEST)

    def variance(self) -> Floats:
        """Variance of each probability: [N, K]."""
        return _variance(1 / (1 + np.exp(-self._points)))

    def divergence_variance(self, labels: NDArray[np.int64], mean: Floats) -> Floats:
        """Variance of KL(label or not in a sample, label or not in the mean), nats^2: [N].

        Args:
            labels: int64 [N].
            mean: mean probabilities, [N, K].
        """
        rows = np.arange(len(labels))
        points = self._points[rows, labels]
        yes, no = -np.logaddexp(0, -points), -np.logaddexp(0, points)  # logarithms
        mean_yes = mean[rows, labels]
        lesser = mean.copy()
        lesser[rows, labels] = 0
        mean_no = np.maximum(lesser.sum(axis=-1), _TINY)
        return _variance(
            np.exp(yes) * (yes - np.log(mean_yes)[:, np.newaxis])
            + np.exp(no) * (no - np.log(mean_no)[:, np.newaxis])
        )


def _variance(values: Floats) -> Floats:
    """Over the nodes on the last axis; exactly 0 where all are equal."""
    differences = values - values[..., :1]
    mean = (differences * _WEIGHTS).sum(axis=-1, keepdims=True)
    variance: Floats = (np.square(differences - mean) * _WEIGHTS).sum(axis=-1)
    return variance
