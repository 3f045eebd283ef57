"""When a few samples have settled which class has the highest mean probability.

To look at a plain confidence interval again after each block of samples, and to stop when it says
yes, is wrong more often than the interval claims. A bet may be looked at any time: a gambler who
starts with 1 and stakes a share b of his wealth, each time a pair of samples comes, on the label's
lead over a rival multiplies it by 1 + b * lead. Where the rival's true mean is as high as the
label's, the wealth is not expected to grow, and reaches 1/a at any time with a chance of at most a
(Ville 1939; Waudby-Smith & Ramdas 2024). So a label whose wealth is 1/a against every rival is
settled with confidence 1 - a. Which label it will be is not known beforehand, so `a` is shared out
among all of them, most of it to the label of the deterministic pass.
"""

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
"""That the label is the one that infinitely many samples would give."""

_EXPECTED_SHARE = 0.9
_BETS = (0.5, 0.999)
"""Wealth is the mean of one gambler's for each stake: small leads need small stakes."""


def settled(probabilities: NDArray[np.float64], expected: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of each image whether its samples have settled its label: bool [N].

    Args:
        probabilities: [N, T, K] of samples in independent pairs, 2i and 2i + 1; the last of an odd
            number is left out.
        expected: int64 [N], the label of the deterministic pass.
    """
    images, samples, classes = probabilities.shape
    rows = np.arange(images)
    labels = probabilities.mean(axis=1).argmax(axis=-1)
    pairs = probabilities[:, : samples // 2 * 2].reshape(images, -1, 2, classes).mean(axis=2)
    leads = pairs[rows, :, labels][..., np.newaxis] - pairs
    gamblers = [np.log1p(bet * leads).sum(axis=1) for bet in _BETS]
    wealth = np.logaddexp.reduce(gamblers, axis=0) - np.log(len(_BETS))
    wealth[rows, labels] = np.inf
    share = np.where(labels == expected, _EXPECTED_SHARE, (1 - _EXPECTED_SHARE) / (classes - 1))
    decided: NDArray[np.bool_] = wealth.min(axis=-1) >= -np.log((1 - CONFIDENCE) * share)
    return decided
