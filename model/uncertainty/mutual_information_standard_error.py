"""Standard error of the mutual information of T samples. Knows no graph.

As with the probabilities, whose errors the graph of the head computes, most of the error
comes from rare samples that a few draws miss. Normal logits predict their contribution.
"""

import numpy as np
from numpy.typing import NDArray

from model.graphs.mc_statistics import QUADRATURE_WEIGHTS, WIDENED_NODES, sample_count_inputs

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]

_MAX_LOGIT = 700.0
"""Larger logits would overflow exp."""
_MIN_COMPLEMENT = np.finfo(np.float64).eps
"""Smallest value of 1 - p that is divided by."""


def mutual_information_errors(
    probabilities: Float32Array,
    entropy_terms: Float32Array,
    mean: Float64Array,
    label_variances: Float64Array,
) -> Float64Array:
    """Return the standard errors of the mutual information in nats: float64 [N].

    They are exactly 0 where the samples are equal.

    Args:
        probabilities: p of T >= 2 samples, [N, K, T].
        entropy_terms: -p ln p, [N, K, T].
        mean: mean probabilities, [N, K].
        label_variances: what `divergence_variances` returns for the label, [N].
    """
    count = probabilities.shape[2]
    log_mean = np.log(mean).astype(np.float32)
    # -KL(sample || mean) of each sample minus that of the first sample.
    divergences = np.add.reduce(entropy_terms - entropy_terms[..., :1], axis=1)
    divergences += np.vecmat(log_mean, probabilities - probabilities[..., :1])
    shift = np.add.reduce(divergences, axis=1) / np.float32(count)
    divergences -= shift[:, np.newaxis]
    variances = np.vecdot(divergences, divergences) / np.float64(count - 1)
    errors: Float64Array = np.sqrt((variances + label_variances) / count)
    return errors


def divergence_variances(
    logit_means: Float64Array, logit_variances: Float64Array, samples: int, mean: Float64Array
) -> Float64Array:
    """Return the variance of KL(Bernoulli(p of a sample) || Bernoulli(mean)): nats^2, float64 [N].

    p is the label's probability, and its logit is taken to be normal. The variance is exactly 0
    where the samples are equal.

    Args:
        logit_means: mean over T >= 2 samples of ln (1 - p)/p, [N].
        logit_variances: its variance, divisor T, [N].
        samples: T.
        mean: the label's mean probability, [N].
    """
    nodes = sample_count_inputs(samples)[WIDENED_NODES].astype(np.float64)
    steps = np.sqrt(logit_variances)[:, np.newaxis] * nodes
    points = np.minimum(steps + logit_means[:, np.newaxis], _MAX_LOGIT)
    probabilities = 1 / (1 + np.exp(points))
    log_odds = np.log(mean / np.maximum(1 - mean, _MIN_COMPLEMENT))[:, np.newaxis]
    # The divergence up to a constant, with ln (1 - p) = ln p - logit.
    divergences = np.log(probabilities) + points - probabilities * (points + log_odds)
    divergences -= divergences[:, :1].copy()
    divergences -= np.vecdot(divergences, QUADRATURE_WEIGHTS)[:, np.newaxis]
    variances: Float64Array = np.vecdot(np.square(divergences), QUADRATURE_WEIGHTS)
    return variances
