"""What Prometheus scrapes at GET /metrics. Knows no route and no model.

With several workers the figures are summed over all of them, through the files of
PROMETHEUS_MULTIPROC_DIR, which `service.server` sets before it starts them.
"""

import asyncio
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.samples import Sample

from model.bundle.store import SAMPLED_SUFFIX
from service.observability import multiprocess_metrics as shared_figures

logger = structlog.stdlib.get_logger("service")

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_HAND_OVER_SECONDS = 0.25
_MOST_LATER = 100
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_CLASSES = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 1000)
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)


_Metric = TypeVar("_Metric", Counter, Histogram)


class DeferredMetrics:
    """What is counted, on its way to the metrics, whose client takes long for each.

    Of the event loop's thread alone.
    """

    def __init__(self) -> None:
        self._sums: defaultdict[Counter, float] = defaultdict(float)
        self._values: dict[Gauge, float] = {}
        self._shown: list[tuple[Gauge, Callable[[], float]]] = []
        self._later: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def add(self, metric: Counter, amount: float = 1.0) -> None:
        """Add to a counter."""
        self._sums[metric] += amount

    def put(self, gauge: Gauge, value: float) -> None:
        """Give a gauge a value."""
        self._values[gauge] = value

    def show(self, gauge: Gauge, value: Callable[[], float]) -> Callable[[], None]:
        """Let a gauge show a value, added to others that it shows; call the answer to end that."""
        shown = gauge, value
        self._shown.append(shown)

        def stop() -> None:
            gauge.set(0)
            self._shown.remove(shown)

        return stop

    def later(self, count: Callable[..., None], *arguments: Any) -> None:
        """Call `count` before the metrics are looked at.

        Many calls in a row take less time than each after a run of a network, which leaves none of
        this in the processor's caches.
        """
        self._later.append((count, arguments))
        if len(self._later) % _MOST_LATER == 0:
            asyncio.get_running_loop().call_soon(self._catch_up)

    def _catch_up(self) -> None:
        while self._later:  # one that fails costs no other
            count, arguments = self._later.popleft()
            count(*arguments)

    def hand_over(self) -> None:
        """Bring the metrics up to date."""
        self._catch_up()
        while self._sums:
            metric, amount = self._sums.popitem()
            metric.inc(amount)
        values, self._values = self._values, {}
        for gauge, value in values.items():
            gauge.set(value)
        shown: defaultdict[Gauge, float] = defaultdict(float)
        for gauge, show in self._shown:
            shown[gauge] += show()
        for gauge, value in shown.items():
            gauge.set(value)


class Metrics:
    """The service's counters, gauges and histograms, in a registry of their own."""

    def __init__(self) -> None:
        if MULTIPROCESS_VARIABLE in os.environ:
            shared_figures.install()
        registry = CollectorRegistry()
        self._registry = registry
        self._present: _Present | None = None
        self._exposing: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None
        self.tally = DeferredMetrics()
        """By which what every request counts is counted."""
        self.requests = Counter(
            "dropserve_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.latency = Histogram(
            "dropserve_request_duration_seconds",
            "From the end of the request's head to the answer's last byte, seconds.",
            ("route",),
            buckets=_LATENCIES,
            registry=registry,
        )
        self._by_model: dict[tuple[Counter | Histogram, str], Counter | Histogram] = {}
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_hand = Gauge(
            "dropserve_requests_in_hand",
            "Requests being answered now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.batch_rows = Histogram(
            "dropserve_batch_rows",
            "Images in one inference run.",
            ("model",),
            buckets=_ROWS,
            registry=registry,
        )
        self.queue_rows = Gauge(
            "dropserve_queue_rows",
            "Images waiting for inference.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.stage = Histogram(
            "dropserve_stage_seconds",
            "One run of a stage: decode (images of a request), trunk, head (with its summary).",
            ("stage",),
            buckets=_STAGES,
            registry=registry,
        )
        self.model_info = Gauge(
            "dropserve_model_info",
            "1 for each model and version that is loaded.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.predictive_entropy = Histogram(
            "dropserve_predictive_entropy_nats",
            "Predictive entropy of answers of POST /uncertainty.",
            ("model",),
            buckets=_NATS,
            registry=registry,
        )
        self.mutual_information = Histogram(
            "dropserve_mutual_information_nats",
            "Mutual information of answers of POST /uncertainty.",
            ("model",),
            buckets=_NATS,
            registry=registry,
        )

        self.typicality = Histogram(
            "dropserve_typicality",
            "Typicality of images sent to POST /uncertainty; spread evenly while they are like the "
            "validation images.",
            ("model",),
            buckets=_SHARES,
            registry=registry,
        )
        self.set_size = Histogram(
            "dropserve_prediction_set_classes",
            "Classes in a prediction set of POST /uncertainty.",
            ("model",),
            buckets=_CLASSES,
            registry=registry,
        )
        self.abstentions = Counter(
            "dropserve_abstentions",
            "Answers of POST /uncertainty that abstained.",
            ("model",),
            registry=registry,
        )

        self.refused_versions = Gauge(
            "dropserve_refused_version",
            "1 for each version that is refused; GET /models has the reason.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.switches = Counter(
            "dropserve_switches",
            "Times that another version became a model's stable one, summed over the workers.",
            ("model",),
            registry=registry,
        )
        self.inference_requests = Counter(
            "dropserve_inference_requests",
            "Requests for a model; NAME-mc is NAME with dropout alive.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self.inference_seconds = Counter(
            "dropserve_inference_seconds",
            "Time spent on requests for a model, by outcome and by part, seconds.",
            ("model", "version", "part"),
            registry=registry,
        )
        self.inference_images = Counter(
            "dropserve_inference_images",
            "Images answered.",
            ("model", "version"),
            registry=registry,
        )
        self.inference_runs = Counter(
            "dropserve_inference_runs",
            "Runs of the network that answered a model's requests.",
            ("model", "version"),
            registry=registry,
        )
        self.last_inference = Gauge(
            "dropserve_last_inference_timestamp_seconds",
            "When the last request for a model was answered, seconds since 1970.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="max",
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        labels = route, method, status
        if labels not in self._answered:  # to look for them again takes the client long
            self._answered[labels] = self.requests.labels(*labels), self.latency.labels(route)
        requests, latency = self._answered[labels]
        self.tally.add(requests)
        latency.observe(seconds)

    def uncertain(
        self,
        model: str,
        observed: Sequence[tuple[Histogram, NDArray[Any]]],
        abstentions: int,
    ) -> None:
        """Count answers for images: of each histogram there are the values, [N]."""
        for histogram, values in observed:
            series = self._of_model(histogram, model)
            for value in values.tolist():
                series.observe(value)
        self.tally.add(self._of_model(self.abstentions, model), abstentions)

    def _of_model(self, metric: _Metric, model: str) -> _Metric:
        known = metric, model
        if known not in self._by_model:  # to look for it again takes the client long
            self._by_model[known] = metric.labels(model)
        return cast(_Metric, self._by_model[known])

    def keep(self, models: Set[str], versions: Set[tuple[str, str]]) -> None:
        """Show from now on only series of models, and of (model, version), that are there."""
        known = self._present
        self._present = _Present(frozenset(models), frozenset(versions))
        if known is not None and MULTIPROCESS_VARIABLE not in os.environ:
            for model, version in known.versions - self._present.versions:
                self._remove(model, version)

    def _remove(self, model: str, version: str) -> None:
        self.tally.hand_over()
        for name in (model, model + SAMPLED_SUFFIX):
            for metric in (
                self.model_info,
                self.refused_versions,
                self.inference_requests,
                self.inference_seconds,
                self.inference_images,
                self.inference_runs,
                self.last_inference,
            ):
                metric.remove_by_labels({"model": name, "version": version})

    def expose(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        self.tally.hand_over()
        return self._rendered()

    async def exposition(self) -> bytes:
        """Return them too, rendered on a thread: with many workers and models that takes long.

        Whoever asks while they are rendered shares the next rendering with all who do.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._render_after(self._exposing))
        return await asyncio.shield(self._next)

    async def _render_after(self, other: "asyncio.Task[bytes] | None") -> bytes:
        if other is not None:
            await asyncio.wait([other])
        self._exposing, self._next = self._next, None
        self.tally.hand_over()
        return await asyncio.to_thread(self._rendered)

    def _rendered(self) -> bytes:
        return generate_latest(self._everyone())

    async def inference_figures(self) -> dict[tuple[str, str], dict[str, float]]:
        """Return, of each (model, version), the counts of requests, seconds, images and runs."""
        self.tally.hand_over()
        return await asyncio.to_thread(self._inference_figures)

    def _inference_figures(self) -> dict[tuple[str, str], dict[str, float]]:
        names = {
            "dropserve_inference_requests_total": "requests",
            "dropserve_inference_seconds_total": "seconds",
            "dropserve_inference_images_total": "images",
            "dropserve_inference_runs_total": "runs",
            "dropserve_last_inference_timestamp_seconds": "last",
        }
        found: dict[tuple[str, str], dict[str, float]] = {}
        for metric in self._everyone().collect():
            for sample in metric.samples:
                if sample.name in names:
                    labels = dict(sample.labels)
                    model = labels.pop("model"), labels.pop("version")
                    labels.pop("pid", None)
                    what = ".".join([names[sample.name], *labels.values()])
                    found.setdefault(model, {})[what] = sample.value
        return found

    async def keep_handing_over(self) -> None:
        """Let other workers see what this one has counted, until cancelled."""
        while MULTIPROCESS_VARIABLE in os.environ:
            await asyncio.sleep(_HAND_OVER_SECONDS)
            try:
                self.tally.hand_over()
            except Exception:  # the files are on a full disk, say; there is another time
                logger.exception("figures not handed over")

    def _everyone(self) -> CollectorRegistry:
        registry = self._registry
        folder = os.environ.get(MULTIPROCESS_VARIABLE)
        if folder is not None and Path(folder).is_dir():
            registry = CollectorRegistry()
            MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        if self._present is None:
            return registry
        shown = CollectorRegistry()
        shown.register(_Shown(registry, self._present))
        return shown

    def close(self) -> None:
        """Hand over what is left, take this worker's gauges out of the sums; when it stops."""
        self.tally.hand_over()
        if MULTIPROCESS_VARIABLE in os.environ:
            forget_worker(os.getpid())


@dataclass(frozen=True)
class _Present:
    """Which models and versions there are."""

    models: Set[str]
    versions: Set[tuple[str, str]]

    def has(self, sample: Sample) -> bool:
        """Whether a series is of no model, or of one that is there."""
        model = sample.labels.get("model")
        if model is None:
            return True
        model = model.removesuffix(SAMPLED_SUFFIX)
        version = sample.labels.get("version")
        return model in self.models if version is None else (model, version) in self.versions


class _Shown:
    """A registry without the series of models that are gone: the files keep them for good."""

    def __init__(self, registry: CollectorRegistry, present: _Present) -> None:
        self._registry = registry
        self._present = present

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with what is left of its series."""
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if self._present.has(each)]
            yield metric

    def describe(self) -> list[Metric]:
        """Describe nothing: the registry would else collect to find the names."""
        return []


def forget_worker(pid: int | None) -> None:
    """Take the gauges of a worker that has ended out of the sums."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
