"""Metric updates that are collected while requests run and applied later. Knows no metric's name.

An update through prometheus_client takes a lock and, with several workers, a write to a file.
Collecting updates in plain dictionaries keeps this off the path of a request.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter, Gauge

_MAX_DEFERRED_CALLS = 100
"""After so many calls of `defer`, the event loop runs them in its next iteration."""


class DeferredMetrics:
    """Collects updates of counters and gauges until `flush` applies them.

    Not thread-safe: only the event-loop thread may use it.
    """

    def __init__(self) -> None:
        self._increments: defaultdict[Counter, float] = defaultdict(float)
        self._gauge_values: dict[Gauge, float] = {}
        self._gauge_sources: list[tuple[Gauge, Callable[[], float]]] = []
        self._counter_updates: list[Callable[[], object]] = []
        self._deferred_calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._flush_calls: list[Callable[[], object]] = []

    def increment(self, counter: Counter, amount: float = 1.0) -> None:
        """Add to a counter."""
        self._increments[counter] += amount

    def set_gauge(self, gauge: Gauge, value: float) -> None:
        """Set a gauge; of several values before a flush, the last one counts."""
        self._gauge_values[gauge] = value

    def add_gauge_source(self, gauge: Gauge, source: Callable[[], float]) -> Callable[[], None]:
        """Read a gauge's value from `source` at each flush; several sources are summed.

        Returns a function that removes the source and sets the gauge to 0.
        """
        entry = gauge, source
        self._gauge_sources.append(entry)

        def remove() -> None:
            gauge.set(0)
            self._gauge_sources.remove(entry)

        return remove

    def add_counter_source(self, counter: Counter, source: Callable[[], int]) -> None:
        """Add to a counter, at each flush, by how much `source` has grown."""
        seen = source()

        def update() -> None:
            nonlocal seen
            before, seen = seen, source()
            counter.inc(max(0, seen - before))  # a source may begin anew

        self._counter_updates.append(update)

    def defer(self, update: Callable[..., object], *arguments: Any) -> None:
        """Call `update(*arguments)` before the metrics are read.

        Many calls in a row take less time than one call after each inference run, which evicts the
        metrics' code and data from the processor's caches.
        """
        self._deferred_calls.append((update, arguments))
        if len(self._deferred_calls) % _MAX_DEFERRED_CALLS == 0:
            asyncio.get_running_loop().call_soon(self._run_deferred_calls)

    def defer_until_flush(self, update: Callable[[], object]) -> None:
        """Call `update()` at the next flush, and not before."""
        self._flush_calls.append(update)

    def _run_deferred_calls(self) -> None:
        while self._deferred_calls:  # popped first, so that one that raises is not run again
            update, arguments = self._deferred_calls.popleft()
            update(*arguments)

    def flush(self) -> None:
        """Apply every collected update to the metrics."""
        self._run_deferred_calls()
        while self._flush_calls:
            self._flush_calls.pop()()
        while self._increments:
            counter, amount = self._increments.popitem()
            counter.inc(amount)
        for update in self._counter_updates:
            update()
        gauge_values, self._gauge_values = self._gauge_values, {}
        for gauge, value in gauge_values.items():
            gauge.set(value)
        sums: defaultdict[Gauge, float] = defaultdict(float)
        for gauge, source in self._gauge_sources:
            sums[gauge] += source()
        for gauge, value in sums.items():
            gauge.set(value)
