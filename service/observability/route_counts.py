"""Counts requests by outcome and by duration, and turns the durations into percentiles.

The buckets of durations are narrower than those of the Prometheus histogram: each is 2^(1/2) times
as wide as the one before, so that a percentile is known to within 20 %. Knows no HTTP server.
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint32]

OUTCOMES = ("answered", "refused", "failed")
"""Of a request, by its status: below 400, 4xx, 5xx."""
_FIRST_EDGE_SECONDS, _EDGES_PER_DOUBLING, _DOUBLINGS = 2.0**-13, 2, 18
_EDGES = [
    _FIRST_EDGE_SECONDS * 2 ** (step / _EDGES_PER_DOUBLING)
    for step in range(_DOUBLINGS * _EDGES_PER_DOUBLING + 1)
]
"""Upper ends of the buckets, seconds: 122 microseconds to 32 seconds. One more bucket follows."""
_PADDED_EDGES = [-1.0] * len(OUTCOMES) + _EDGES
"""With this, the place of a duration is that of its bucket behind the outcomes."""
WIDTH = len(OUTCOMES) + len(_EDGES) + 1
"""Numbers in the counts of a route: by outcome, then by bucket of duration."""


def outcome_of(status: int) -> int:
    """Return the index in OUTCOMES of a response's status."""
    return 0 if status < 400 else 1 if status < 500 else 2


class RouteCounts:
    """The requests of one route since they were last taken."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = [0] * WIDTH

    def add(self, outcome: int, seconds: float) -> None:
        """Count a request; outcome: an index in OUTCOMES. Called for each request, so it is short.

        seconds: how long it took.
        """
        counts = self._counts
        counts[outcome] += 1
        counts[bisect_left(_PADDED_EDGES, seconds)] += 1

    def take(self) -> Counts:
        """Return the counts, uint32 [WIDTH], and begin anew."""
        counts, self._counts = np.array(self._counts, np.uint32), [0] * WIDTH
        return counts


def percentiles(counts: Counts, levels: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the durations that shares of the requests do not exceed, seconds.

    Args:
        counts: [..., WIDTH], of `RouteCounts`.
        levels: L shares in 0..1; .5 for the median.

    Returns:
        [L, ...], interpolated geometrically in their bucket; NaN where there was no request.
    """
    cumulative = np.cumsum(counts[..., len(OUTCOMES) :], axis=-1, dtype=np.float64)
    ratio = 2 ** (1 / _EDGES_PER_DOUBLING)
    upper = np.array([*_EDGES, _EDGES[-1] * ratio])
    return np.stack([_percentile(cumulative, level, upper, ratio) for level in levels])


def _percentile(
    cumulative: NDArray[np.float64], level: float, upper: NDArray[np.float64], ratio: float
) -> NDArray[np.float64]:
    total = cumulative[..., -1]
    rank = level * total
    bucket = np.minimum((cumulative < rank[..., None]).sum(axis=-1), len(upper) - 1)
    at_end = np.take_along_axis(cumulative, bucket[..., None], axis=-1)[..., 0]
    before = np.take_along_axis(cumulative, np.maximum(bucket - 1, 0)[..., None], axis=-1)[..., 0]
    before = np.where(bucket == 0, 0, before)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = (rank - before) / (at_end - before)
        seconds: NDArray[np.float64] = upper[bucket] * ratio ** (inside - 1)
    return np.where(total > 0, seconds, np.nan)
