"""What is estimated of a run, before it and after others."""

import math

import numpy as np
import pytest

from model.dropout.sampling import FIRST_BLOCK, AdaptiveSamples, Analytic, FixedSamples, Sampling
from service.engine.latency import Costs, LatencyEstimator, Rate
from service.engine.pending_requests import PendingRequest

COSTS = Costs(trunk_seconds=0.01, head_seconds=0.001, analytic_samples=97)


def job(rows: int, sampling: Sampling | None = None) -> PendingRequest:
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
def test_a_row_takes_the_trunk_and_the_head_for_each_sample(
    sampling: Sampling | None, most: int, least: int
) -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.row_seconds(sampling) == pytest.approx(0.01 + 0.001 * most)
    assert latency.least_row_seconds(sampling) == pytest.approx(0.01 + 0.001 * least)


def test_without_costs_nothing_takes_long() -> None:
    latency = LatencyEstimator()
    latency.note_rates([job(1, FixedSamples(1, 64))], 1, 5.0, 5.0)
    for sampling in (None, FixedSamples(1, 64), AdaptiveSamples(1, 64), Analytic()):
        assert latency.row_seconds(sampling) == latency.least_row_seconds(sampling) == 0


def test_a_rate_falls_at_once_and_rises_slowly() -> None:
    rate = Rate(1.0)
    rate.note(100.0)
    assert rate.fastest == 1.0
    assert rate.recent == pytest.approx(1.05)
    rate.note(0.5)
    assert (rate.fastest, rate.recent) == (0.5, 0.5)
    for _ in range(100):
        rate.note(2.0)
    assert (rate.fastest, rate.recent) == (0.5, 2.0)


def test_rates_are_learnt_from_runs_of_one_sampling() -> None:
    latency = LatencyEstimator(COSTS)
    latency.note_rates([job(1, FixedSamples(1, 10)), job(3, FixedSamples(1, 10))], 4, 0.02, 0.02)
    assert (latency.trunk.fastest, latency.head.fastest) == (0.005, 0.0005)
    latency.note_rates([job(1, FixedSamples(1, 10)), job(1, FixedSamples(2, 10))], 2, 0.002, 0.0)
    assert (latency.trunk.fastest, latency.head.fastest) == (0.001, 0.0005)


def test_a_kind_is_known_once_it_has_run_alone() -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.seen_seconds([job(1)]) == math.inf
    latency.note([job(1), job(1, FixedSamples(1, 10))], 2, 1.0)
    latency.note([job(1, AdaptiveSamples(1, 64))], 1, 1.0)
    assert latency.seen_seconds([job(1)]) == math.inf
    latency.note([job(1), job(3)], 4, 1.0)
    assert latency.seen_seconds([job(2)]) == 0.5
    assert latency.seen_seconds([job(2), job(1)]) == 0.75
    assert latency.seen_seconds([job(2), job(1, FixedSamples(1, 10))]) == math.inf


def test_samples_that_fit_a_time() -> None:
    latency = LatencyEstimator(COSTS)
    assert latency.samples_within(0.0305) == 20
    assert latency.samples_within(0.005) == 0
    assert LatencyEstimator().samples_within(1) == 0
