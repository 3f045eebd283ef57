"""What a model's requests have cost: counted for GET /metrics, told by GET /v2/models/…/stats.

Knows no route. With several workers the counts are of all of them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from service.metrics import Metrics

_NANOSECONDS = 1e9
_MILLISECONDS = 1e3
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


class Timing:
    """One request on its way; its times are seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.read = self.started
        self.images = 0
        self.answered: float | None = None

    def has_read(self, images: int) -> None:
        """Note that the images are there, and how many."""
        self.images = images
        self.read = time.perf_counter()

    def has_answered(self) -> None:
        """Note that the model has answered: what follows is output."""
        self.answered = time.perf_counter()


class Statistics:
    """Counters of one version of one model, with dropout asleep or alive."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        requests, seconds = metrics.inference_requests, metrics.inference_seconds
        self._requests = {
            outcome: requests.labels(model, version, outcome) for outcome in ("success", "fail")
        }
        self._seconds = {
            part: seconds.labels(model, version, part) for part in ("success", "fail", *_PARTS)
        }
        self._images = metrics.inference_images.labels(model, version)
        self._runs = metrics.inference_runs.labels(model, version)
        self._last = metrics.last_inference.labels(model, version)

    @contextmanager
    def request(self) -> Iterator[Timing]:
        """Count and time the request that the block answers, whether or not it raises."""
        timing = Timing()
        outcome = "fail"
        try:
            yield timing
            outcome = "success"
        finally:
            ended = time.perf_counter()
            self._requests[outcome].inc()
            self._seconds[outcome].inc(ended - timing.started)
            self._last.set(time.time())
            if timing.answered is not None:
                self._seconds["compute_input"].inc(timing.read - timing.started)
                self._seconds["compute_output"].inc(ended - timing.answered)
                self._images.inc(timing.images)

    def waited(self, seconds: float) -> None:
        """Count a request's time in the queue."""
        self._seconds["queue"].inc(seconds)

    def ran(self, seconds: float, requests: int) -> None:
        """Count a run of the network; each of its requests has waited for all of it."""
        self._seconds["compute_infer"].inc(seconds * requests)
        self._runs.inc()


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


def totals(models: Sequence[tuple[str, str]], metrics: Metrics) -> dict[str, Any]:
    """Describe several (model, version) together."""
    figures = metrics.inference_figures()
    return {"model_stats": [described(figures.get(each, {}), *each) for each in models]}
