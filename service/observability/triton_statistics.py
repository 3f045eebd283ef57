"""What requests for a model have cost, as GET /v2/models/…/stats shows it. Knows no route.

The counts are Prometheus series too. With several workers they are summed over all of them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.observability.metrics_recorder import Metrics
from service.tracing.request_trace import CURRENT_TRACE

_NANOSECONDS = 1e9
_MILLISECONDS = 1e3
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
"""Parts of a request's time, named as in Triton's statistics extension."""


class ModelStatistics:
    """Counts and times the requests for one version of one model, with dropout active or not."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        requests, seconds = metrics.inference_requests, metrics.inference_seconds
        self.model, self.version = model, version
        self._deferred = metrics.deferred
        self._requests = {
            outcome: requests.labels(model, version, outcome) for outcome in ("success", "fail")
        }
        self._seconds = {
            part: seconds.labels(model, version, part) for part in ("success", "fail", *_PARTS)
        }
        self._images = metrics.inference_images.labels(model, version)
        self._runs = metrics.inference_runs.labels(model, version)
        self._last = metrics.last_inference.labels(model, version)
        self._pending: _Counts | None = None
        """Sums over the requests that the metrics do not show yet: adding here is faster."""

    def time_request(self) -> "RequestTiming":
        """Return a context manager that counts and times a request, also one that raises."""
        return RequestTiming(self)

    def count_run(self, seconds: float, queued: float, requests: int) -> None:
        """Count one inference run over the rows of several requests.

        seconds: duration of the run, which each of its requests has waited for.
        queued: seconds that all its requests together had waited in the queue.
        """
        self._deferred.increment(self._seconds["queue"], queued)
        self._deferred.increment(self._seconds["compute_infer"], seconds * requests)
        self._deferred.increment(self._runs)

    def count_request(self, outcome: str, timing: "RequestTiming") -> None:
        """Count a request that ends now; outcome: "success" or "fail"."""
        ended = time.perf_counter()
        counts = self._pending
        if counts is None:
            counts = self._pending = _Counts()
            self._deferred.defer(self._add_pending)
        counts.last = time.time()
        if outcome == "success":
            counts.successes += 1
            counts.success_seconds += ended - timing.started
        else:
            counts.failures += 1
            counts.failure_seconds += ended - timing.started
        if timing.predicted is not None:
            counts.input_seconds += timing.input_read - timing.started
            counts.output_seconds += ended - timing.predicted
            counts.images += timing.images

    def _add_pending(self) -> None:
        counts, self._pending = self._pending, None
        if counts is None:
            return
        increment = self._deferred.increment
        increment(self._requests["success"], counts.successes)
        increment(self._requests["fail"], counts.failures)
        increment(self._seconds["success"], counts.success_seconds)
        increment(self._seconds["fail"], counts.failure_seconds)
        increment(self._seconds["compute_input"], counts.input_seconds)
        increment(self._seconds["compute_output"], counts.output_seconds)
        increment(self._images, counts.images)
        self._deferred.set_gauge(self._last, counts.last)


@dataclass(slots=True)
class _Counts:
    """Sums over several requests that have ended."""

    successes: int = 0
    failures: int = 0
    success_seconds: float = 0.0
    failure_seconds: float = 0.0
    input_seconds: float = 0.0
    output_seconds: float = 0.0
    images: int = 0
    last: float = 0.0
    """When the last of them ended, seconds since 1970."""


class RequestTiming:
    """Times one request; a context manager. Its times are seconds of `time.perf_counter`."""

    __slots__ = ("_statistics", "images", "input_read", "predicted", "started")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        self.started = self.input_read = time.perf_counter()
        self.images = 0
        self.predicted: float | None = None
        """When the model had predicted; None until then."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outcome = "success" if kind is None else "fail"
        self._statistics.count_request(outcome, self)
        trace = CURRENT_TRACE.get()
        if trace is not None:
            trace.model, trace.version = self._statistics.model, self._statistics.version
            trace.images = self.images
            trace.decoded = self.input_read if self.images else None

    def mark_input_read(self, images: int) -> None:
        """Record that the request's images have been read, and how many there are."""
        self.images = images
        self.input_read = time.perf_counter()

    def mark_predicted(self) -> None:
        """Record that the model has predicted; the time from here on is that of the output."""
        self.predicted = time.perf_counter()


def describe(counts: Mapping[str, float], model: str, version: str) -> dict[str, Any]:
    """Describe the counts of one version as Triton's statistics extension does.

    counts: those of this model and version in `Metrics.inference_counts`.
    """
    successes = int(counts.get("requests.success", 0))

    def duration(part: str, count: int) -> dict[str, int]:
        return {"count": count, "ns": round(_NANOSECONDS * counts.get(f"seconds.{part}", 0))}

    return {
        "name": model,
        "version": version,
        "last_inference": round(_MILLISECONDS * counts.get("last", 0)),
        "inference_count": int(counts.get("images", 0)),
        "execution_count": int(counts.get("runs", 0)),
        "inference_stats": {
            "success": duration("success", successes),
            "fail": duration("fail", int(counts.get("requests.fail", 0))),
            **{part: duration(part, successes) for part in _PARTS},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


async def describe_all(versions: Sequence[tuple[str, str]], metrics: Metrics) -> dict[str, Any]:
    """Describe the counts of several (model, version) pairs."""
    counts = await metrics.inference_counts()
    return {"model_stats": [describe(counts.get(each, {}), *each) for each in versions]}
