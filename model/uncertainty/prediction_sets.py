"""Conformal prediction sets: scores of classes, and thresholds up to which they are in a set.

The thresholds are quantiles of the scores that the true classes of validation images have (split
conformal prediction: Vovk et al. 2005). This module knows no bundle.
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.whole_ranks import rank_from

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SetKind = Literal["thr", "class-conditional", "aps"]


def aps_scores(probabilities: Float64Array, draws: Float64Array) -> Float64Array:
    """Return the randomised APS scores of all classes: float64 [N, K].

    The score of a class is the total probability of all likelier classes plus a random share of its
    own probability (Romano et al. 2020).

    Args:
        probabilities: [N, K].
        draws: [N] in 0..1, the share of its own probability that counts.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    totals = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, totals, axis=1)
    scores -= (1 - draws[:, np.newaxis]) * probabilities
    return scores


def classes_up_to(
    thresholds: Float64Array | float, scores: Float64Array, probabilities: Float64Array
) -> BoolArray:
    """Return the sets of the classes up to a score, and of the likeliest class: bool [N, K].

    So no set is empty. Sets that hold one more class can only hold the true class more often.

    Args:
        thresholds: of each class, [K], or of all.
        scores: [N, K].
        probabilities: [N, K], which say what class is the likeliest.
    """
    sets: BoolArray = scores <= thresholds
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def uniform_draws(features: Float32Array) -> Float64Array:
    """Return a pseudo-random number in 0..1 for each image, a hash of its features: float64 [N].

    Args:
        features: float32 [N, F].
    """
    digests = [hashlib.sha256(b"dropserve sets" + row.tobytes()).digest() for row in features]
    words = np.frombuffer(b"".join(digests), dtype="<u8")[::4]
    return words / 2.0**64


def conformal_threshold(scores: Float64Array, coverage: float) -> float:
    """Return the score up to which classes belong to a set; infinite where n is too small.

    Args:
        scores: [n] ascending, scores of the true classes of validation images.
        coverage: 0 < coverage < 1.
    """
    rank = int(rank_from(coverage, len(scores) + 1))
    return float(scores[rank - 1]) if rank <= len(scores) else np.inf


def class_conditional_thresholds(
    scores: Float64Array, true_classes: Int64Array, classes: int, coverage: float
) -> Float64Array:
    """Return for each class the score up to which it belongs to a set: float64 [K].

    The threshold of a class comes from its own validation images alone, so the sets hold it in the
    share `coverage` of its images (Mondrian conformal prediction: Vovk 2012). A class with n_c
    images is rare if ceil((n_c + 1) coverage) > n_c, which no threshold of its own can reach. All
    rare classes share the threshold of their pooled scores, which promises the coverage over their
    images together (the null cluster of Ding et al. 2023 pools them as well). Where the pooled
    scores are still too few, these classes have the threshold of all scores, which promises nothing
    for them.

    Args:
        scores: [n] ascending, scores of the true classes of validation images.
        true_classes: int64 [n] in 0..K-1, in the same order.
        classes: K.
        coverage: 0 < coverage < 1.
    """
    counts = np.bincount(true_classes, minlength=classes)
    ranks = rank_from(coverage, counts + 1)
    rare = ranks > counts
    by_class = scores[np.argsort(true_classes, kind="stable")]
    last = (np.cumsum(counts) - counts + ranks - 1)[~rare]
    thresholds = np.full(classes, conformal_threshold(scores[rare[true_classes]], coverage))
    thresholds[~rare] = by_class[last]
    if rare.any() and np.isinf(thresholds[rare]).all():
        thresholds[rare] = conformal_threshold(scores, coverage)
    return thresholds
