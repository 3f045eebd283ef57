"""Exemplars: for each route and bucket of the latency, the trace of the latest sampled request.

prometheus_client keeps exemplars in the memory of one process, and none with several workers. Here
each worker stores its own in a file beside the series that they share. There are at most as many as
there are buckets.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import orjson
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

_FILES, _FILE = "exemplars-*.json", "exemplars-{}.json"
_BUCKET = "_bucket"

Latest = dict[tuple[str, str], tuple[str, float, float]]
"""By route and upper bound of the bucket: trace id, seconds, and when, in seconds since 1970."""


class LatencyExemplars:
    """The exemplars of one process. Only the event-loop thread notes and stores them."""

    def __init__(self, buckets: Sequence[float]) -> None:
        """Keep none yet. buckets: the upper bounds of the histogram, seconds, without infinity."""
        self._buckets = buckets
        self._names = [_go_string(each) for each in (*buckets, inf)]
        self._latest: Latest = {}
        self._has_changed = False

    def note(self, route: str, seconds: float, trace_id: str) -> None:
        """Note a sampled request; it replaces the one before in its bucket."""
        name = self._names[bisect_left(self._buckets, seconds)]
        self._latest[route, name] = trace_id, seconds, time.time()
        self._has_changed = True

    def store(self, folder: Path) -> None:
        """Write what is new to this worker's file, where the other workers read it."""
        if not self._has_changed:
            return
        self._has_changed = False
        entries = [[*key, *value] for key, value in self._latest.items()]
        file = folder / _FILE.format(os.getpid())
        draft = file.with_suffix(".draft")
        draft.write_bytes(orjson.dumps(entries))
        draft.rename(file)

    def latest(self, folder: Path | None) -> Latest:
        """Return the latest exemplars of this process, and of the workers that share a folder."""
        latest = self._latest.copy()
        for file in () if folder is None else folder.glob(_FILES):
            for route, bucket, trace_id, seconds, timestamp in _read(file):
                known = latest.get((route, bucket))
                if known is None or known[-1] < timestamp:
                    latest[route, bucket] = trace_id, seconds, timestamp
        return latest


class WithExemplars(Collector):
    """Collects another collector, with exemplars at the buckets of one histogram."""

    def __init__(self, collector: Collector, histogram: str, latest: Latest) -> None:
        self._collector = collector
        self._histogram = histogram
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        for metric in self._collector.collect():
            if metric.name == self._histogram:
                metric.samples = [self._with_exemplar(each) for each in metric.samples]
            yield metric

    def _with_exemplar(self, sample: Sample) -> Sample:
        found = self._latest.get((sample.labels.get("route", ""), sample.labels.get("le", "")))
        if found is None or not sample.name.endswith(_BUCKET):
            return sample
        trace_id, seconds, timestamp = found
        return sample._replace(exemplar=Exemplar({"trace_id": trace_id}, seconds, timestamp))


def remove_exemplars(folder: Path, pid: int | None) -> None:
    """Remove the file of a worker that has ended."""
    (folder / _FILE.format(pid)).unlink(missing_ok=True)


def _read(file: Path) -> Sequence[tuple[str, str, str, float, float]]:
    try:
        entries: Sequence[tuple[str, str, str, float, float]] = orjson.loads(file.read_bytes())
    except (OSError, ValueError):  # a worker that has ended takes its file with it
        return ()
    return entries


def _go_string(number: float) -> str:
    """Return a number as it stands in the label `le`."""
    text: str = floatToGoString(number)  # type: ignore[no-untyped-call]
    return text
