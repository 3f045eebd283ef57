"""Uncertainty of head dropout without sampling, by a normal approximation. Knows no graph.

With one dropout layer before a linear output, a logit is a sum over units that are kept
independently. Its mean and its covariances are closed forms,

    mean_k = bias_k + sum_j c_jk            cov_kl = p/(1-p) * sum_j c_jk c_jl

where c_jk is what unit j adds to logit k. By the central limit theorem the distribution is close to
normal (Wang & Manning 2013). The mean of the softmax over it has no closed form, so it is estimated
from QMC_POINTS quasi-random points, the same for every image. They are multiples of the roots of
the primes (Richtmyer 1951), standardised to a mean of exactly 0 and a covariance of exactly 1, and
placed along the axes of the covariance of the logits, the longest axis first.
"""

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

QMC_POINTS = 256
"""Number of quasi-Monte Carlo points of each image."""

Floats = NDArray[np.float64]


def normal_logits(
    contributions: NDArray[np.float32], bias: NDArray[np.float32], p: float
) -> Floats:
    """Return quasi-random points of the distribution of the logits: float64 [N, QMC_POINTS, K].

    Args:
        contributions: float32 [N, F, K], what each unit adds to each logit when nothing is zeroed.
        bias: float32 [K].
        p: probability of zeroing a unit, 0 <= p < 1.
    """
    terms = contributions.astype(np.float64)
    mean = terms.sum(axis=1) + bias
    covariance = terms.transpose(0, 2, 1) @ terms * (p / (1 - p))
    lengths, axes = np.linalg.eigh(covariance)
    scaled = (axes * np.sqrt(np.maximum(lengths, 0))[:, np.newaxis])[..., ::-1]
    logits: Floats = mean[:, np.newaxis] + _normal_points(mean.shape[-1]) @ scaled.transpose(
        0, 2, 1
    )
    return logits


@lru_cache(maxsize=16)
def _normal_points(dimensions: int) -> Floats:
    """Return quasi-random points of the standard normal: float64 [QMC_POINTS, dimensions]."""
    steps = np.sqrt(_primes(dimensions))
    uniform = (0.5 + np.arange(QMC_POINTS)[:, np.newaxis] * steps) % 1
    quantile = NormalDist().inv_cdf
    points = np.array([quantile(share) for share in uniform.ravel().tolist()])
    points = points.reshape(uniform.shape)
    points -= points.mean(axis=0)
    if dimensions > QMC_POINTS // 2:  # too few points for a covariance matrix of full rank
        return points
    root_covariance = np.linalg.cholesky(points.T @ points / QMC_POINTS)
    whitened: Floats = np.linalg.solve(root_covariance, points.T).T
    return whitened


def _primes(count: int) -> NDArray[np.int64]:
    """Return the first `count` primes: sieve of Eratosthenes up to Rosser's bound on the last."""
    bound = max(15, int(count * (np.log(count + 1) + np.log(np.log(count + 2)) + 1)))
    is_prime = np.ones(bound + 1, dtype=np.bool_)
    is_prime[:2] = False
    for number in range(2, int(bound**0.5) + 1):
        is_prime[number * number :: number] &= not is_prime[number]
    return np.flatnonzero(is_prime)[:count]
