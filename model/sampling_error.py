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
_STEEPEST = 700.0
"""Logits beyond this would overflow exp."""
_NEAREST = np.finfo(np.float64).eps
"""To 1, of a probability."""


def logit_normal_variances(
    centres: Floats, variances: Floats, samples: int, labels: NDArray[np.int64], mean: Floats
) -> tuple[Floats, Floats]:
    """Return variances of what T >= 2 samples say, as far as normal logits tell them.

    Args:
        centres: mean over the samples of the probabilities' logits, [N, K].
        variances: of the same, [N, K].
        samples: T.
        labels: int64 [N].
        mean: mean probabilities, [N, K].

    Returns:
        The variance of each probability, [N, K], and of KL(label or not in a sample, label or not
        in the mean), nats^2: [N]. Exactly 0 where the samples are equal.
    """
    images, classes = centres.shape
    deviations = np.sqrt(variances) * (1 + _WIDENING / samples)
    points = deviations[..., np.newaxis] * _NODES
    points -= centres[..., np.newaxis]  # negative logits: the nodes lie evenly around 0
    np.minimum(points, _STEEPEST, out=points)
    values = np.empty((images, classes + 1, len(_NODES)))
    chances = np.exp(points, out=values[:, :-1])
    chances += 1
    np.reciprocal(chances, out=chances)
    rows = np.arange(images)
    values[:, -1] = _divergence(chances[rows, labels], points[rows, labels], mean[rows, labels])
    values -= values[..., :1].copy()
    values -= (values @ _WEIGHTS)[..., np.newaxis]
    found = np.square(values, out=values) @ _WEIGHTS
    return found[:, :-1], found[:, -1]


def _divergence(chances: Floats, points: Floats, mean: Floats) -> Floats:
    """KL(p, mean) of two classes, but for a constant, as ln (1 - p) = ln p - logit: [N, nodes].

    Args:
        chances: p, [N, nodes].
        points: its negative logits, [N, nodes].
        mean: [N].
    """
    odds = np.log(mean / np.maximum(1 - mean, _NEAREST))[:, np.newaxis]
    return np.log(chances) + points - chances * (points + odds)
