"""Requests by outcome and duration, and the percentiles of the durations."""

import numpy as np
import pytest

from service.observability.route_counts import (
    OUTCOMES,
    WIDTH,
    RouteCounts,
    outcome_of,
    percentiles,
)

LEVELS = (0.5, 0.9, 0.99)


def counted(seconds: list[float]) -> RouteCounts:
    counts = RouteCounts()
    for each in seconds:
        counts.add(0, each)
    return counts


@pytest.mark.parametrize("scale_seconds", [0.0005, 0.004, 0.3])
def test_percentiles_are_within_20_per_cent_of_the_exact_ones(scale_seconds: float) -> None:
    random = np.random.default_rng(0)
    seconds = scale_seconds * np.exp(random.normal(size=5_000))
    found = percentiles(counted(seconds.tolist()).take(), LEVELS)
    np.testing.assert_allclose(found, np.quantile(seconds, LEVELS), rtol=0.2)


def test_percentile_of_equal_durations_lies_in_their_bucket() -> None:
    (found,) = percentiles(counted([0.01] * 100).take(), (0.5,))
    assert 0.01 / np.sqrt(2) < found < 0.01 * np.sqrt(2)


def test_durations_beyond_the_buckets_are_counted() -> None:
    counts = counted([1e-9, 1e6]).take()
    low, high = percentiles(counts, (0.25, 1.0))
    assert low < 1e-3
    assert high > 30


def test_percentile_without_requests_is_unknown() -> None:
    some = counted([0.01]).take()
    found = percentiles(np.stack([np.zeros(WIDTH, np.uint32), some]), LEVELS)
    assert found.shape == (3, 2)
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "answered"), (304, "answered"), (400, "refused"), (499, "refused"), (503, "failed")],
)
def test_outcome_follows_from_the_status(status: int, outcome: str) -> None:
    assert OUTCOMES[outcome_of(status)] == outcome


def test_counts_begin_anew_when_they_are_taken() -> None:
    counts = counted([0.01, 0.02])
    assert counts.take()[: len(OUTCOMES)].tolist() == [2, 0, 0]
    assert not counts.take().any()
