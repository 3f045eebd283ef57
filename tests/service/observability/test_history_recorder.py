"""What a process records of itself: only what has changed, and nothing twice."""

import asyncio
import fcntl
from pathlib import Path

import numpy as np

from model.uncertainty.calibration import ABSTENTION_REASONS
from service.observability.history_recorder import (
    ENGINE,
    ENGINE_SUMS,
    ENGINE_WIDTH,
    GAUGE_NAMES,
    GAUGES,
    VERSION_PARTS,
    HistoryRecorder,
)
from service.observability.history_rings import HistoryRings
from service.observability.metrics_recorder import Metrics
from service.observability.route_counts import OUTCOMES, WIDTH

NOW = 359_000_000
VERSION = "version", "digits", "1"
VERSION_WIDTH = sum(VERSION_PARTS.values())


def observe(metrics: Metrics, entropies: list[float], **abstentions: int) -> None:
    values = [(metrics.predictive_entropy, np.array(entropies))]
    metrics.observe_uncertainty("digits", "1", values, abstentions)


def newest(recorder: HistoryRecorder, subject: tuple[str, ...], width: int) -> list[int]:
    counts: list[int] = recorder.rings.read(subject, NOW, width)[-1].tolist()
    return counts


def record(recorder: HistoryRecorder, interval: int = NOW) -> None:
    asyncio.run(recorder.record(interval))


def test_requests_are_recorded_by_route_and_outcome() -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(None))
    for status in (200, 200, 404, 503):
        metrics.count_request("/predict", "POST", status, 0.01)
    record(recorder)
    counts = newest(recorder, ("route", "/predict"), WIDTH)
    assert counts[: len(OUTCOMES)] == [2, 1, 1]
    assert sum(counts[len(OUTCOMES) :]) == 4


def test_only_what_is_new_is_recorded() -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(None))
    observe(metrics, [0.002, 0.002, 9.0], unsure=2)
    record(recorder, NOW - 1)
    observe(metrics, [0.002], unusual=1)
    record(recorder)
    before, after = recorder.rings.read(VERSION, NOW, VERSION_WIDTH)[-2:].tolist()
    entropies = VERSION_PARTS["predictive_entropy"]
    assert (before[1], before[entropies - 1], sum(before[:entropies])) == (2, 1, 3)
    assert (after[1], sum(after[:entropies])) == (1, 1)
    assert before[-len(ABSTENTION_REASONS) :] == [2, 0, 0]
    assert after[-len(ABSTENTION_REASONS) :] == [0, 1, 0]


def test_version_that_was_removed_and_comes_back_is_recorded_from_0() -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(None))
    metrics.retain_series({"digits"}, {("digits", "1")})
    observe(metrics, [0.5, 0.5])
    record(recorder, NOW - 1)
    metrics.retain_series({"digits"}, set())
    metrics.retain_series({"digits"}, {("digits", "1")})
    observe(metrics, [0.5])
    record(recorder)
    assert sum(newest(recorder, VERSION, VERSION_WIDTH)) == 1


def test_model_that_leaves_adds_nothing_to_the_engine() -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(None))
    metrics.retain_series({"digits", "other"}, set())
    for model in ("digits", "other"):
        metrics.batch_rows.labels(model).observe(3)
    record(recorder, NOW - 1)
    metrics.retain_series({"digits"}, set())
    metrics.batch_rows.labels("digits").observe(2)
    record(recorder)
    engine = newest(recorder, ENGINE, ENGINE_WIDTH)
    assert dict(zip(ENGINE_SUMS, engine, strict=False))["rows"] == 2
    assert sum(engine[len(ENGINE_SUMS) :]) == 1


def test_batches_gauges_and_memory_are_recorded() -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(None))
    for rows in (1, 3):
        metrics.batch_rows.labels("digits").observe(rows)
    metrics.queue_rows.labels("digits").set(5)
    metrics.requests_in_flight.set(2)
    record(recorder)
    engine = newest(recorder, ENGINE, ENGINE_WIDTH)
    assert dict(zip(ENGINE_SUMS, engine, strict=False))["rows"] == 4
    assert engine[len(ENGINE_SUMS) :][:3] == [1, 0, 1]
    gauges = dict(zip(GAUGE_NAMES, newest(recorder, GAUGES, len(GAUGE_NAMES)), strict=True))
    assert (gauges["workers"], gauges["in_flight"], gauges["queue_rows"]) == (1, 2, 5)
    assert gauges["memory_kib"] > 10_000


def test_counts_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    metrics = Metrics()
    recorder = HistoryRecorder(metrics, HistoryRings(tmp_path))
    route = "route", "/predict"
    metrics.count_request("/predict", "POST", 200, 0.01)
    record(recorder)
    (file,) = tmp_path.glob("*predict*")
    metrics.count_request("/predict", "POST", 200, 0.01)
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        record(recorder)
        assert newest(recorder, route, WIDTH)[0] == 1
    metrics.count_request("/predict", "POST", 200, 0.01)
    record(recorder)
    assert newest(recorder, route, WIDTH)[0] == 3
