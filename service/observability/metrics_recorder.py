"""Counts what happens and renders it for GET /metrics. Knows no route and no model.

With several workers the values are aggregated over all of them, through the files in
PROMETHEUS_MULTIPROC_DIR, which `service.run_server` sets before it starts the workers.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.samples import Sample

from model.bundle.store import SAMPLED_SUFFIX
from service.observability import multiprocess_metrics
from service.observability.deferred_metrics import DeferredMetrics
from service.observability.prometheus_definitions import PrometheusSeries

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
        self.deferred = DeferredMetrics()
        """Updates that requests have made and that the series do not show yet."""
        # `labels` takes prometheus_client long, so the labelled series are remembered.
        self._model_series: dict[
            tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram
        ] = {}
        self._route_series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._known_versions: _KnownVersions | None = None
        self._current_render: asyncio.Task[bytes] | None = None
        self._next_render: asyncio.Task[bytes] | None = None

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request and observe how long it took."""
        labels = route, method, status
        if labels not in self._route_series:
            self._route_series[labels] = self.requests.labels(*labels), self.latency.labels(route)
        requests, latency = self._route_series[labels]
        self.deferred.increment(requests)
        latency.observe(seconds)

    def observe_uncertainty(
        self,
        model: str,
        observed: Sequence[tuple[Histogram, NDArray[Any]]],
        abstentions: Mapping[str, int],
    ) -> None:
        """Observe the predictions of one request to POST /uncertainty.

        observed: histograms, each with its values [N], one for each of the N images.
        abstentions: how many of the predictions abstained, by reason; empty: uncalibrated.
        """
        for histogram, values in observed:
            series = self._for_model(histogram, model)
            for value in values.tolist():
                series.observe(value)
        total = sum(abstentions.values())
        self.deferred.increment(self._for_model(self.abstentions, model), total)
        for reason, count in abstentions.items():
            by_reason = self._for_model(self.abstentions_by_reason, model, reason)
            self.deferred.increment(by_reason, count)

    def _for_model(self, metric: _Metric, *labels: str) -> _Metric:
        key = metric, labels
        if key not in self._model_series:
            self._model_series[key] = metric.labels(*labels)
        return cast(_Metric, self._model_series[key])

    def retain_series(self, models: Set[str], versions: Set[tuple[str, str]]) -> None:
        """Expose from now on only series of these models and (model, version) pairs."""
        previous = self._known_versions
        self._known_versions = _KnownVersions(frozenset(models), frozenset(versions))
        if previous is not None and MULTIPROCESS_VARIABLE not in os.environ:
            for model, version in previous.versions - self._known_versions.versions:
                self.deferred.flush()  # or else an update would create the series again
                self.remove_version(model, version)
                self.remove_version(model + SAMPLED_SUFFIX, version)

    def render(self) -> bytes:
        """Return all series in Prometheus' text format."""
        self.deferred.flush()
        return self._render()

    async def render_in_thread(self) -> bytes:
        """Return all series, rendered on a thread, since many workers and models take long.

        Calls that arrive during a rendering share the next one.
        """
        if self._next_render is None:
            self._next_render = asyncio.create_task(self._render_after(self._current_render))
        return await asyncio.shield(self._next_render)

    async def _render_after(self, previous: "asyncio.Task[bytes] | None") -> bytes:
        if previous is not None:
            await asyncio.wait([previous])
        self._current_render, self._next_render = self._next_render, None
        self.deferred.flush()
        return await asyncio.to_thread(self._render)

    def _render(self) -> bytes:
        return generate_latest(self._aggregated_registry())

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

    async def flush_periodically(self) -> None:
        """With several workers, show the others what this one has counted, until cancelled."""
        while MULTIPROCESS_VARIABLE in os.environ:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                self.deferred.flush()
            except Exception:  # the disk may be full, for example; the next flush may succeed
                logger.exception("metrics not flushed")

    def _aggregated_registry(self) -> CollectorRegistry:
        """Return a registry over all workers, without series of models that are gone."""
        registry = self.registry
        folder = os.environ.get(MULTIPROCESS_VARIABLE)
        if folder is not None and Path(folder).is_dir():
            registry = CollectorRegistry()
            MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
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
        version = sample.labels.get("version")
        return model in self.models if version is None else (model, version) in self.versions


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


def remove_worker_gauges(pid: int | None) -> None:
    """Remove the gauges of a worker that has ended from the sums of all workers."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
