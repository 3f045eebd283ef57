"""What a model's requests have cost: counted for GET /metrics, told by GET /v2/models/…/stats.

Knows no route. With several workers the counts are of all of them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.observability.metrics import Metrics

_NANOSECONDS = 1e9
_MILLISECONDS = 1e3
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counters of one version of one model, with dropout asleep or alive."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        requests, seconds = metrics.inference_requests, metrics.inference_seconds
        self._tally = metrics.tally
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
        """Of the requests that are not in the metrics yet: to add up is quicker than to count."""

    def request(self) -> "Timing":
        """Count and time the request that the block answers, whether or not it raises."""
        return Timing(self)

    def ran(self, seconds: float, queued: float, requests: int) -> None:
        """Count a run of the network: each of its requests has waited for all of it.

        queued: seconds that they had waited before, together.
        """
        self._tally.add(self._seconds["queue"], queued)
        self._tally.add(self._seconds["compute_infer"], seconds * requests)
        self._tally.add(self._runs)

    def ended(self, outcome: str, timing: "Timing") -> None:
        """Count a request that has ended now."""
        ended = time.perf_counter()
        counts = self._pending
        if counts is None:
            counts = self._pending = _Counts()
            self._tally.later(self._count)
        counts.last = time.time()
        if outcome == "success":
            counts.successes += 1
            counts.success_seconds += ended - timing.started
        else:
            counts.failures += 1
            counts.failure_seconds += ended - timing.started
        if timing.answered is not None:
            counts.input_seconds += timing.read - timing.started
            counts.output_seconds += ended - timing.answered
            counts.images += timing.images

    def _count(self) -> None:
        counts, self._pending = self._pending, None
        if counts is None:
            return
        add = self._tally.add
        add(self._requests["success"], counts.successes)
        add(self._requests["fail"], counts.failures)
        add(self._seconds["success"], counts.success_seconds)
        add(self._seconds["fail"], counts.failure_seconds)
        add(self._seconds["compute_input"], counts.input_seconds)
        add(self._seconds["compute_output"], counts.output_seconds)
        add(self._images, counts.images)
        self._tally.put(self._last, counts.last)


@dataclass(slots=True)
class _Counts:
    """Several requests that have ended."""

    successes: int = 0
    failures: int = 0
    success_seconds: float = 0.0
    failure_seconds: float = 0.0
    input_seconds: float = 0.0
    output_seconds: float = 0.0
    images: int = 0
    last: float = 0.0
    """When the last of them ended, seconds since 1970."""


class Timing:
    """One request on its way; its times are seconds of `time.perf_counter`."""

    __slots__ = ("_statistics", "answered", "images", "read", "started")

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self.started = self.read = time.perf_counter()
        self.images = 0
        self.answered: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outcome = "success" if kind is None else "fail"
        self._statistics.ended(outcome, self)

    def has_read(self, images: int) -> None:
        """Note that the images are there, and how many."""
        self.images = images
        self.read = time.perf_counter()

    def has_answered(self) -> None:
        """Note that the model has answered: what follows is output."""
        self.answered = time.perf_counter()


def described(figures: Mapping[str, float], model: str, version: str) -> dict[str, Any]:
    """Describe one model's counts as Triton's statistics extension does.

    figures: as `Metrics.inference_figures` has them for this model and version.
    """
    counted = figures.get
    answered = int(counted("requests.success", 0))

    def duration(part: str, count: int) -> dict[str, int]:
        return {"count": count, "ns": round(_NANOSECONDS * counted(f"seconds.{part}", 0))}

    return {
        "name": model,
        "version": version,
        "last_inference": round(_MILLISECONDS * counted("last", 0)),
        "inference_count": int(counted("images", 0)),
        "execution_count": int(counted("runs", 0)),
        "inference_stats": {
            "success": duration("success", answered),
            "fail": duration("fail", int(counted("requests.fail", 0))),
            **{part: duration(part, answered) for part in _PARTS},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


async def totals(models: Sequence[tuple[str, str]], metrics: Metrics) -> dict[str, Any]:
    """Describe several (model, version) together."""
    figures = await metrics.inference_figures()
    return {"model_stats": [described(figures.get(each, {}), *each) for each in models]}
