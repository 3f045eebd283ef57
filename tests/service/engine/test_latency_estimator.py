"""Latency estimates before any run, and after runs."""

import math

import numpy as np
import pytest

from model.dropout.sampling_methods import (
    FIRST_BLOCK,
    AdaptiveSamples,
    Analytic,
    FixedSamples,
    Sampling,
)
from service.engine.latency_estimator import Costs, LatencyEstimator, Rate
from service.engine.pending_requests import PendingRequest

COSTS = Costs(trunk_seconds=0.01, head_seconds=0.001, analytic_samples=97)


def request(rows: int, sampling: Sampling | None = None) -> PendingRequest:
    return PendingRequest(np.zeros((rows, 1, 1, 1), np.float32), sampling, 60)


@pytest.mark.parametrize(
    ("sampling", "most", "least"),
    [
        (None, 0, 0),
        (FixedSamples(1, 64), 64, 64),
        (Analytic(), 97, 97),
        (AdaptiveSamples(1, 1024), 1024, FIRST_BLOCK),
        (AdaptiveSamples(1, 4), 4, 4),
    ],
)
def test_row_seconds_add_trunk_and_head_for_each_sample(
    sampling: Sampling | None, most: int, least: int
) -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.row_seconds(sampling) == pytest.approx(0.01 + 0.001 * most)
    assert latency.min_row_seconds(sampling) == pytest.approx(0.01 + 0.001 * least)


def test_estimates_are_zero_without_costs() -> None:
    latency = LatencyEstimator()
    latency.observe_rates([request(1, FixedSamples(1, 64))], 1, 5.0, 5.0)
    for sampling in (None, FixedSamples(1, 64), AdaptiveSamples(1, 64), Analytic()):
        assert latency.row_seconds(sampling) == latency.min_row_seconds(sampling) == 0


def test_rate_falls_at_once_and_rises_slowly() -> None:
    rate = Rate(1.0)
    rate.observe(100.0)
    assert rate.fastest == 1.0
    assert rate.recent == pytest.approx(1.05)
    rate.observe(0.5)
    assert (rate.fastest, rate.recent) == (0.5, 0.5)
    for _ in range(100):
        rate.observe(2.0)
    assert (rate.fastest, rate.recent) == (0.5, 2.0)


def test_rates_update_from_runs_of_one_sampling() -> None:
    latency = LatencyEstimator(COSTS)
    latency.observe_rates(
        [request(1, FixedSamples(1, 10)), request(3, FixedSamples(1, 10))], 4, 0.02, 0.02
    )
    assert (latency.trunk.fastest, latency.head.fastest) == (0.005, 0.0005)
    latency.observe_rates(
        [request(1, FixedSamples(1, 10)), request(1, FixedSamples(2, 10))], 2, 0.002, 0.0
    )
    assert (latency.trunk.fastest, latency.head.fastest) == (0.001, 0.0005)


def test_run_seconds_are_finite_once_a_cost_key_has_run_alone() -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.run_seconds([request(1)]) == math.inf
    latency.observe([request(1), request(1, FixedSamples(1, 10))], 2, 1.0)
    latency.observe([request(1, AdaptiveSamples(1, 64))], 1, 1.0)
    assert latency.run_seconds([request(1)]) == math.inf
    latency.observe([request(1), request(3)], 4, 1.0)
    assert latency.run_seconds([request(2)]) == 0.5
    assert latency.run_seconds([request(2), request(1)]) == 0.75
    assert latency.run_seconds([request(2), request(1, FixedSamples(1, 10))]) == math.inf


def test_samples_within_time_counts_the_samples_that_fit() -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.samples_within_time(0.0305) == 20
    assert latency.samples_within_time(0.005) == 0
    assert LatencyEstimator().samples_within_time(1) == 0
