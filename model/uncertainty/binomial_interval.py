"""The interval of a share, from how many of a number of images it was seen at. Knows no image."""

import math
from statistics import NormalDist
from typing import NamedTuple

_NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)
"""The intervals are 95 % intervals."""


class Interval(NamedTuple):
    """An estimated share, with the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """Return the share of successes with its 95 % score interval (Wilson 1927); None: no trial.

    It covers the true share with 95 % on average over shares, needs no quantile of a beta
    distribution, and is right also where successes are rare (Brown, Cai & DasGupta 2001). It holds
    for one look at independent trials; the test of
    `model.uncertainty.sequential_test_of_coverage_and_risk` may be looked at always.

    Args:
        successes: 0 ≤ successes ≤ trials.
        trials: at least 0.
    """
    if not trials:
        return None
    share, square = successes / trials, _NORMAL_QUANTILE**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    half = _NORMAL_QUANTILE * spread / (1 + square / trials)
    # Rounding must not put an end beyond the share.
    low = centre - half if successes else 0.0
    high = centre + half if successes < trials else 1.0
    return Interval(share, low, high)
