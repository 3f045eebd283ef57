"""Sequential test of which class has the highest mean probability, by betting.

Checking a fixed-sample confidence interval after each block of samples, and stopping as soon as it
excludes zero, is wrong more often than the interval claims. A betting process may be checked at any
time. A gambler starts with wealth 1 and bets, at each pair of samples, a share b of it on the lead
of the label over a rival class, which multiplies the wealth by 1 + b * lead. If the true mean of
the rival is at least that of the label, the wealth is a supermartingale and ever reaches 1/a with a
probability of at most a (Ville 1939; Waudby-Smith & Ramdas 2024). So a label whose wealth is 1/a
against every rival is decided with confidence 1 - a. The label is not known beforehand, so `a` is
divided among all classes, with the largest share for the label of the deterministic pass.
"""

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
"""1 - the probability, of any image, that another label is decided than the one that infinitely
many samples would give. Of the decided ones alone, where these are few, more may be wrong."""

_EXPECTED_SHARE = 0.9
"""Share of the error probability for the label of the deterministic pass."""
_STAKES = (0.5, 0.999)
"""The wealth is the mean over gamblers with one stake each: small leads need small stakes."""


def label_is_decided(
    probabilities: NDArray[np.float64], expected: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether the samples of each image have decided its label: bool [N].

    Args:
        probabilities: float64 [N, T, K] of samples in independent pairs, 2i and 2i + 1. If T is
            odd, the last sample counts for the label, but not for the test.
        expected: int64 [N], the label of the deterministic pass.
    """
    images, samples, classes = probabilities.shape
    rows = np.arange(images)
    labels = probabilities.mean(axis=1).argmax(axis=-1)
    pairs = probabilities[:, : samples // 2 * 2].reshape(images, -1, 2, classes).mean(axis=2)
    leads = pairs[rows, :, labels][..., np.newaxis] - pairs
    log_wealths = [np.log1p(stake * leads).sum(axis=1) for stake in _STAKES]
    log_wealth = np.logaddexp.reduce(log_wealths, axis=0) - np.log(len(_STAKES))
    log_wealth[rows, labels] = np.inf
    share = np.where(labels == expected, _EXPECTED_SHARE, (1 - _EXPECTED_SHARE) / (classes - 1))
    decided: NDArray[np.bool_] = log_wealth.min(axis=-1) >= -np.log((1 - CONFIDENCE) * share)
    return decided
