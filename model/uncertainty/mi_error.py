"""How wrong the mutual information of T samples may be. Knows no graph.

As with probabilities, whose errors `model.graphs.mc_statistics` tells: what matters is a rare sample that few
have seen yet, and logits foretell it.
"""

import numpy as np
from numpy.typing import NDArray

from model.graphs.mc_statistics import STEPS, WEIGHTS, rule

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_STEEPEST = 700.0
"""Logits beyond this would overflow exp."""
_NEAREST = np.finfo(np.float64).eps
"""To 1, of a probability."""


def information_errors(
    probabilities: Singles, surprises: Singles, mean: Floats, divergences: Floats
) -> Floats:
    """Return standard errors of the mutual information, nats: [N].

    Exactly 0 where the samples are equal.

    Args:
        probabilities: p of T >= 2 samples, [N, K, T].
        surprises: -p ln p, [N, K, T].
        mean: mean probabilities, [N, K].
        divergences: what `divergence_variances` says of the label, [N].
    """
    count = probabilities.shape[2]
    weights = np.log(mean).astype(np.float32)
    # KL(sample, mean) with the other sign, less that of the first sample.
    samples = np.add.reduce(surprises - surprises[..., :1], axis=1)
    samples += np.vecmat(weights, probabilities - probabilities[..., :1])
    shift = np.add.reduce(samples, axis=1) / np.float32(count)
    samples -= shift[:, np.newaxis]
    variances = np.vecdot(samples, samples) / np.float64(count - 1)
    errors: Floats = np.sqrt((variances + divergences) / count)
    return errors


def divergence_variances(centres: Floats, widths: Floats, samples: int, mean: Floats) -> Floats:
    """Return the variance of KL(label or not in a sample, label or not in the mean): nats^2, [N].

    As far as normal logits tell it. Exactly 0 where the samples are equal.

    Args:
        centres: mean over T >= 2 samples of ln (1 - p)/p, p the label's probability, [N].
        widths: its variance, divisor T, [N].
        samples: T.
        mean: the label's mean probability, [N].
    """
    steps = np.sqrt(widths)[:, np.newaxis] * rule(samples)[STEPS].astype(np.float64)
    points = np.minimum(steps + centres[:, np.newaxis], _STEEPEST)
    chances = 1 / (1 + np.exp(points))
    odds = np.log(mean / np.maximum(1 - mean, _NEAREST))[:, np.newaxis]
    # But for a constant, and as ln (1 - p) = ln p - logit.
    values = np.log(chances) + points - chances * (points + odds)
    values -= values[:, :1].copy()
    values -= np.vecdot(values, WEIGHTS)[:, np.newaxis]
    variances: Floats = np.vecdot(np.square(values), WEIGHTS)
    return variances
