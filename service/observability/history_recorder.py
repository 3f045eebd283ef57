"""Records every 5 seconds what has happened: requests, engine, uncertainty, memory and processor.

Each worker adds its own counts to rings that all of them share, so every worker shows the same. No
image and nothing of a single request is kept. Knows no route's meaning and no model.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from model.uncertainty.calibration import ABSTENTION_REASONS
from service.observability.history_rings import INTERVAL_SECONDS, HistoryRings, Subject
from service.observability.memory_and_cpu_reading import ProcessUsage
from service.observability.metrics_recorder import Metrics
from service.observability.prometheus_definitions import NATS, ROWS, SET_SIZES, TYPICALITIES
from service.observability.route_counts import Counts

Totals = NDArray[np.int64]

logger = structlog.stdlib.get_logger("service")

GAUGES: Subject = ("gauges",)
"""The ring of sums over the workers at one moment of the interval, see GAUGE_NAMES."""
GAUGE_NAMES = ("workers", "memory_kib", "in_flight", "queue_rows")
ENGINE: Subject = ("engine",)
"""The ring of sums, see ENGINE_SUMS, and then of inference runs by bucket of ROWS."""
ENGINE_SUMS = ("cpu_ms", "queue_units", "requests", "rows")
"""Processor time; waiting time of requests, in QUEUE_UNIT_SECONDS; requests; rows of all runs."""
QUEUE_UNIT_SECONDS = 1e-4
ENGINE_WIDTH = len(ENGINE_SUMS) + len(ROWS) + 1
ROUTE, VERSION = "route", "version"
"""Kinds of subjects: (ROUTE, path) counts as `RouteCounts`; (VERSION, model, version) counts
images by VERSION_PARTS, one behind the other."""
VERSION_PARTS = {
    "predictive_entropy": len(NATS) + 1,
    "mutual_information": len(NATS) + 1,
    "typicality": len(TYPICALITIES) + 1,
    "set_size": len(SET_SIZES) + 1,
    "abstentions": len(ABSTENTION_REASONS),
}
"""Histograms of predictions, and abstentions by reason: how many numbers each has."""

_MOMENTS, _MOMENT_SECONDS = 25, 0.02
"""Workers record at different moments, so that they seldom wait for each other."""
_RETRIES, _RETRY_SECONDS = 20, 0.02


class HistoryRecorder:
    """Records this process's part of the history. Only the event-loop thread may use it."""

    def __init__(self, metrics: Metrics, rings: HistoryRings) -> None:
        self._metrics = metrics
        self.rings = rings
        self._usage = ProcessUsage()
        self._totals: dict[Subject, Totals] = {}
        """The values of the Prometheus series at this call of `record`, or at the last one."""
        self._totals_before: dict[Subject, Totals] = {}
        self._unwritten: dict[Subject, Counts] = {}
        """Counts that could not be added to the rings yet."""

    async def run(self) -> None:
        """Record each interval once it has ended, until cancelled."""
        while True:
            interval = int(time.time() // INTERVAL_SECONDS)
            moment = (interval + 1) * INTERVAL_SECONDS + os.getpid() % _MOMENTS * _MOMENT_SECONDS
            await asyncio.sleep(moment - time.time())
            try:
                await self.record(interval)
            except Exception:  # the disk may be full, for example; the next interval may succeed
                logger.exception("the last seconds are not recorded")

    async def record(self, interval: int) -> None:
        """Add what has happened since the last call to the counts of an interval."""
        self._metrics.deferred.flush()
        memory, cpu = self._usage.read()
        for subject, counts in self._changes(cpu):
            if counts.any():
                before = self._unwritten.get(subject)
                self._unwritten[subject] = counts if before is None else before + counts
        await self._write(interval)
        in_flight = sum(_values(self._metrics.requests_in_flight).values())
        queued = sum(_values(self._metrics.queue_rows).values())
        gauges = np.array([1, memory, in_flight, queued]).astype(np.uint32)
        self.rings.add(GAUGES, interval, gauges)
        self.rings.forget_idle(interval)

    async def _write(self, interval: int) -> None:
        for _ in range(_RETRIES):
            for subject, counts in list(self._unwritten.items()):
                if self.rings.add(subject, interval, counts):
                    del self._unwritten[subject]
                await asyncio.sleep(0)  # let requests be answered in between
            if not self._unwritten:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def _changes(self, cpu_ms: int) -> Iterator[tuple[Subject, Counts]]:
        """Yield what each subject has counted since the last call."""
        self._totals_before, self._totals = self._totals, {}
        for route, counts in self._metrics.take_route_counts():
            yield (ROUTE, route), counts
        engine = self._engine_changes()
        engine[0] += np.uint32(cpu_ms)
        yield ENGINE, engine
        for version, totals in self._version_totals().items():
            subject = (VERSION, *version)
            yield subject, self._since_last(subject, totals)

    def _since_last(self, subject: Subject, totals: Totals) -> Counts:
        before = self._totals_before.get(subject, np.zeros_like(totals))
        self._totals[subject] = totals
        if (totals < before).any():  # a series that was removed, with its version, begins at 0
            before = np.zeros_like(totals)
        return (totals - before).astype(np.uint32)

    def _engine_changes(self) -> Counts:
        """Return what the engine has counted since the last call, over all models.

        Each series is compared with itself: their sum falls when a version leaves.
        """
        metrics = self._metrics
        waited = {
            labels: value / QUEUE_UNIT_SECONDS
            for labels, value in _values(metrics.inference_seconds).items()
            if labels[-1] == "queue"
        }
        parts: list[tuple[str, Mapping[tuple[str, ...], Any], int]] = [
            ("queue", waited, 1),
            ("requests", _values(metrics.inference_requests), 1),
            ("rows", _sums(metrics.batch_rows), 1),
            ("runs", _histograms(metrics.batch_rows), len(ROWS) + 1),
        ]
        changes = [np.zeros(1, np.uint32)]  # of the processor time
        for name, series, width in parts:
            change = np.zeros(width, np.uint32)
            for labels, value in series.items():
                totals = np.atleast_1d(value).astype(np.int64)
                change += self._since_last((*ENGINE, name, *labels), totals)
            changes.append(change)
        return np.concatenate(changes)

    def _version_totals(self) -> dict[tuple[str, ...], Totals]:
        """Return the counts of each (model, version) by VERSION_PARTS."""
        metrics = self._metrics
        histograms = {
            name: _histograms(getattr(metrics, name))
            for name in VERSION_PARTS
            if name != "abstentions"
        }
        reasons = _values(metrics.abstentions_by_reason)
        totals = {}
        for version in histograms["predictive_entropy"]:
            nothing = {name: np.zeros(width) for name, width in VERSION_PARTS.items()}
            parts = [each.get(version, nothing[name]) for name, each in histograms.items()]
            abstained = [reasons.get((*version, reason), 0) for reason in ABSTENTION_REASONS]
            totals[version] = np.concatenate([*parts, abstained]).astype(np.int64)
        return totals


def _values(metric: Counter | Gauge) -> dict[tuple[str, ...], float]:
    """Return the value of each series of this process by the values of its labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def _sums(metric: Histogram) -> dict[tuple[str, ...], float]:
    """Return the sum of what each series of this process has observed, by its labels' values."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_sum")
    }


def _histograms(metric: Histogram) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Return the counts by bucket of each series of this process, by the values of its labels."""
    cumulative: dict[tuple[str, ...], list[float]] = {}
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = tuple(value for name, value in sample.labels.items() if name != "le")
                cumulative.setdefault(labels, []).append(sample.value)
    return {labels: np.diff(counts, prepend=0) for labels, counts in cumulative.items()}
