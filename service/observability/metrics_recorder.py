"""Counts what happens and renders it for GET /metrics. Knows no route and no model.

With several workers the values are aggregated over all of them, through the files in
PROMETHEUS_MULTIPROC_DIR, which `service.run_server` sets before it starts the workers.
"""

import asyncio
import os
import platform
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample

from model.bundle.store import SAMPLED_SUFFIX
from service import API_VERSION
from service.observability import log_format, multiprocess_metrics
from service.observability.deferred_metrics import DeferredMetrics
from service.observability.exemplars import LatencyExemplars, WithExemplars, remove_exemplars
from service.observability.prometheus_definitions import LATENCY_SECONDS, PrometheusSeries
from service.observability.prometheus_process_metrics import (
    WorkerProcesses,
    this_process,
    workers_of,
)
from service.observability.route_counts import Counts, RouteCounts, outcome_of
from service.tracing.request_trace import SpanCounts

logger = structlog.stdlib.get_logger("service")

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_FLUSH_SECONDS = 0.25
_INFERENCE_COUNTS = {
    "dropserve_inference_requests_total": "requests",
    "dropserve_inference_seconds_total": "seconds",
    "dropserve_inference_images_total": "images",
    "dropserve_inference_runs_total": "runs",
    "dropserve_last_inference_timestamp_seconds": "last",
}
"""Name of a sample in the exposition -> its key in `Metrics.inference_counts`."""

_Metric = TypeVar("_Metric", Counter, Histogram)


class Metrics(PrometheusSeries):
    """The service's series, with the methods that update, aggregate and render them."""

    def __init__(self) -> None:
        if MULTIPROCESS_VARIABLE in os.environ:
            multiprocess_metrics.install()
        super().__init__()
        versions = API_VERSION, platform.python_version(), metadata.version("onnxruntime")
        self.build_info.labels(*versions).set(1)
        self.registry.register(WorkerProcesses(this_process))
        self.deferred = DeferredMetrics()
        """Updates that requests have made and that the series do not show yet."""
        self.deferred.add_counter_source(self.log_lines_dropped, log_format.dropped_lines)
        self.exemplars = LatencyExemplars(LATENCY_SECONDS)
        """Traces of requests, by their latency."""
        # `labels` takes prometheus_client long, so the labelled series are remembered.
        self._version_series: dict[
            tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram
        ] = {}
        self._route_series: dict[
            tuple[str, str, int], tuple[Counter, Histogram, RouteCounts, int]
        ] = {}
        self._route_counts: dict[str, RouteCounts] = {}
        self._known_versions: _KnownVersions | None = None
        self._renderings = {False: _Renderings(self, False), True: _Renderings(self, True)}

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request and observe how long it took."""
        labels = route, method, status
        if labels not in self._route_series:
            self._route_series[labels] = (
                self.requests.labels(*labels),
                self.latency.labels(route),
                self._route_counts.setdefault(route, RouteCounts()),
                outcome_of(status),
            )
        requests, latency, counts, outcome = self._route_series[labels]
        self.deferred.increment(requests)
        latency.observe(seconds)
        counts.add(outcome, seconds)

    def count_spans(self, counts: SpanCounts) -> None:
        """Show from now on what becomes of spans."""
        for outcome in ("sent", "failed", "dropped"):
            source = partial(getattr, counts, outcome)
            self.deferred.add_counter_source(self.trace_spans.labels(outcome), source)

    def report_draining(self) -> None:
        """Show that this process drains."""
        self.draining.set(1)

    def take_route_counts(self) -> Sequence[tuple[str, Counts]]:
        """Return the requests that this process has answered since the last call, by route."""
        return [(route, counts.take()) for route, counts in self._route_counts.items()]

    def observe_uncertainty(
        self,
        model: str,
        version: str,
        observed: Sequence[tuple[Histogram, NDArray[Any]]],
        abstentions: Mapping[str, int],
    ) -> None:
        """Observe the predictions of one request to POST /uncertainty.

        observed: histograms, each with its values [N], one for each of the N images.
        abstentions: how many of the predictions abstained, by reason; empty: uncalibrated.
        """
        for histogram, values in observed:
            series = self.series_of_version(histogram, model, version)
            for value in values.tolist():
                series.observe(value)
        total = sum(abstentions.values())
        self.deferred.increment(self.series_of_version(self.abstentions, model, version), total)
        for reason, count in abstentions.items():
            by_reason = self.series_of_version(self.abstentions_by_reason, model, version, reason)
            self.deferred.increment(by_reason, count)

    def series_of_version(self, metric: _Metric, *labels: str) -> _Metric:
        """Return a series of a version; labels begin with the model's name and the version."""
        key = metric, labels
        if key not in self._version_series:
            self._version_series[key] = metric.labels(*labels)
        return cast(_Metric, self._version_series[key])

    def retain_series(self, models: Set[str], versions: Set[tuple[str, str]]) -> None:
        """Expose from now on only series of these models and (model, version) pairs."""
        previous = self._known_versions
        self._known_versions = _KnownVersions(frozenset(models), frozenset(versions))
        if previous is not None and MULTIPROCESS_VARIABLE not in os.environ:
            for model, version in previous.versions - self._known_versions.versions:
                self.deferred.flush()  # or else an update would create the series again
                self.remove_version(model, version)
                self.remove_version(model + SAMPLED_SUFFIX, version)
                for key in [
                    each for each in self._version_series if _names(each[1], model, version)
                ]:
                    del self._version_series[key]

    def render(self, *, as_openmetrics: bool = False) -> bytes:
        """Return all series in Prometheus' text format, or in OpenMetrics, which has exemplars."""
        self.deferred.flush()
        return self.render_flushed(as_openmetrics=as_openmetrics)

    async def render_in_thread(self, *, as_openmetrics: bool = False) -> bytes:
        """Return all series, rendered on a thread, since many workers and models take long.

        Calls that arrive during a rendering share the next one of their format.
        """
        return await self._renderings[as_openmetrics].next()

    def render_flushed(self, *, as_openmetrics: bool) -> bytes:
        """Return what the last flush has made of all series; any thread may call it."""
        registry = self._aggregated_registry()
        if not as_openmetrics:
            return generate_latest(registry)
        latest = self.exemplars.latest(_shared_folder())
        name = "dropserve_request_duration_seconds"
        exposed = WithExemplars(registry, name, latest)
        text: bytes = openmetrics.generate_latest(exposed)  # type: ignore[no-untyped-call]
        return text

    async def inference_counts(self) -> dict[tuple[str, str], dict[str, float]]:
        """Return for each (model, version) its requests, seconds, images, runs and last time.

        Keys of the inner dictionaries are `images`, `runs`, `last` (seconds since 1970),
        `requests.OUTCOME` and `seconds.PART`, with the label's value after the dot.
        """
        self.deferred.flush()
        return await asyncio.to_thread(self._collect_inference_counts)

    def _collect_inference_counts(self) -> dict[tuple[str, str], dict[str, float]]:
        counts: dict[tuple[str, str], dict[str, float]] = {}
        for metric in self._aggregated_registry().collect():
            for sample in metric.samples:
                if sample.name in _INFERENCE_COUNTS:
                    labels = dict(sample.labels)
                    version = labels.pop("model"), labels.pop("version")
                    labels.pop("pid", None)
                    key = ".".join([_INFERENCE_COUNTS[sample.name], *labels.values()])
                    counts.setdefault(version, {})[key] = sample.value
        return counts

    async def samples_of(self, prefix: str) -> list[Sample]:
        """Return the samples of the series whose names begin so, summed over the workers."""
        self.deferred.flush()
        return await asyncio.to_thread(self._collect_samples, prefix)

    def _collect_samples(self, prefix: str) -> list[Sample]:
        return [
            sample
            for metric in self._aggregated_registry().collect()
            if metric.name.startswith(prefix)
            for sample in metric.samples
        ]

    async def flush_periodically(self) -> None:
        """With several workers, show the others what this one has counted, until cancelled."""
        while MULTIPROCESS_VARIABLE in os.environ:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                self.deferred.flush()
                self.exemplars.store(Path(os.environ[MULTIPROCESS_VARIABLE]))
            except Exception:  # the disk may be full, for example; the next flush may succeed
                logger.exception("metrics not flushed")

    def _aggregated_registry(self) -> CollectorRegistry:
        """Return a registry over all workers, without series of models that are gone."""
        registry = self.registry
        folder = _shared_folder()
        if folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
            registry.register(WorkerProcesses(partial(workers_of, folder)))
        if self._known_versions is None:
            return registry
        filtered = CollectorRegistry()
        filtered.register(_FilteredCollector(registry, self._known_versions))
        return filtered

    def close(self) -> None:
        """Flush, and remove this worker's gauges from the sums of all workers."""
        self.deferred.flush()
        if MULTIPROCESS_VARIABLE in os.environ:
            remove_worker_gauges(os.getpid())


@dataclass(frozen=True)
class _KnownVersions:
    """The models and the (model, version) pairs whose series are exposed."""

    models: Set[str]
    versions: Set[tuple[str, str]]

    def includes(self, sample: Sample) -> bool:
        """Return whether a sample is of no model, or of a known model and version."""
        model = sample.labels.get("model")
        if model is None:
            return True
        model = model.removesuffix(SAMPLED_SUFFIX)
        versions = [sample.labels[name] for name in ("version", "shadow") if name in sample.labels]
        return model in self.models and all((model, each) in self.versions for each in versions)


def _names(labels: tuple[str, ...], model: str, version: str) -> bool:
    """Return whether labels of a series name a version, as the one that answers or as a shadow."""
    return labels[0] == model and version in labels[1:3]


class _FilteredCollector:
    """Collects a registry without the series of models that are gone.

    The files of several workers keep every series until the service ends.
    """

    def __init__(self, registry: CollectorRegistry, known: _KnownVersions) -> None:
        self._registry = registry
        self._known = known

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with the samples of known versions."""
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if self._known.includes(each)]
            yield metric

    def describe(self) -> list[Metric]:
        """Describe nothing: the registry would otherwise collect to find the names."""
        return []


class _Renderings:
    """Renders all series in one format, once at a time."""

    def __init__(self, metrics: Metrics, as_openmetrics: bool) -> None:
        self._metrics = metrics
        self._as_openmetrics = as_openmetrics
        self._current: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None

    async def next(self) -> bytes:
        """Return the first rendering that begins from now on."""
        if self._next is None:
            self._next = asyncio.create_task(self._render_after(self._current))
        return await asyncio.shield(self._next)

    async def _render_after(self, previous: "asyncio.Task[bytes] | None") -> bytes:
        if previous is not None:
            await asyncio.wait([previous])
        self._current, self._next = self._next, None
        self._metrics.deferred.flush()
        render = partial(self._metrics.render_flushed, as_openmetrics=self._as_openmetrics)
        return await asyncio.to_thread(render)


def remove_worker_gauges(pid: int | None) -> None:
    """Remove the gauges and exemplars of a worker that has ended from those of all workers."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    folder = _shared_folder()
    if folder is not None:
        remove_exemplars(folder, pid)


def _shared_folder() -> Path | None:
    """Return the folder in which several workers share their series; None: there is one worker."""
    folder = os.environ.get(MULTIPROCESS_VARIABLE)
    return Path(folder) if folder is not None and Path(folder).is_dir() else None
