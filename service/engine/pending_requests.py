"""Requests that wait for an inference run, and their deadlines. Knows no scheduling policy."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from model.dropout.sampling_methods import AdaptiveSamples, Sampling
from model.inference.prediction import Prediction
from model.uncertainty.uncertainty_measures import Summary, Uncertainty, concatenate
from service.errors import DeadlineError
from service.http.client_quotas import Client
from service.tracing.request_trace import CURRENT_TRACE

Floats = NDArray[np.float32]
Result = Prediction | Uncertainty | Summary


class PendingRequest:
    """The rows of one request, and the future that its caller awaits."""

    __slots__ = (
        "cost_key",
        "deadline",
        "estimated_seconds",
        "future",
        "images",
        "queue",
        "queued_at",
        "queued_rows",
        "rows",
        "sampling",
        "slice_results",
        "timeout_seconds",
        "trace",
    )

    def __init__(self, images: Floats, sampling: Sampling | None, timeout_seconds: float) -> None:
        """Create a request that is not queued yet.

        images: float32 [N, C, H, W].
        timeout_seconds: how long the caller waits, from now on.
        """
        self.images = images
        self.rows = len(images)
        self.sampling = sampling
        self.cost_key: object = (
            None if isinstance(sampling, AdaptiveSamples) else sampling or "plain"
        )
        """Requests with equal keys take equally long per row; None for adaptive sampling, which
        takes a time that is not known beforehand."""
        self.timeout_seconds = timeout_seconds
        self.trace = CURRENT_TRACE.get()
        """Where its runs are noted; None: it is not sampled."""
        self.queued_at = time.perf_counter()
        """When it was queued, by `time.perf_counter`; reset after each slice of a long request."""
        self.deadline = self.queued_at + timeout_seconds
        """When the request times out, in seconds of `time.perf_counter`."""
        self.future: asyncio.Future[Result] | None = None
        """What the caller awaits; None for a request that was run inline at once."""
        self.queue: ClientQueue
        """The queue of its client; set by `RequestQueue`."""
        self.queued_rows = 0
        """The number of rows that are still queued."""
        self.estimated_seconds: float
        """The estimated run time of all its rows; set by `RequestQueue`."""
        self.slice_results: list[Result]
        """The results of the slices that have run; set by `RequestQueue` for long requests only."""

    def is_awaited(self) -> bool:
        """Return whether the caller still awaits the result."""
        return self.future is not None and not self.future.done()

    def check_deadline(self, now: float) -> bool:
        """Expire the request if its deadline has passed; return whether it is still awaited."""
        if now > self.deadline:
            self.expire()
        return self.future is not None and not self.future.done()

    def expire(self) -> None:
        """Fail with a `DeadlineError`."""
        self.fail(
            DeadlineError(
                f"No answer within {self.timeout_seconds:g} seconds; try again later, "
                "with fewer images or samples."
            )
        )

    def fail(self, error: Exception) -> None:
        """Raise `error` in the caller, if it still waits."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def set_result(self, result: Result) -> None:
        """Return the result to the caller, if it still waits."""
        if self.future is not None and not self.future.done():
            self.future.set_result(result)

    def add_slice_result(self, result: Result) -> None:
        """Keep the result of a slice; with the last slice, return all rows to the caller."""
        if not self.is_awaited():
            return
        self.slice_results.append(result)
        if not self.queued_rows:
            self.set_result(_concatenated(self.slice_results))
            self.slice_results = []


class ClientQueue:
    """The pending requests of one client."""

    __slots__ = ("client", "rows", "short")

    def __init__(self, client: Client | None) -> None:
        self.client = client
        self.rows = 0
        """The number of queued rows of all its requests, short and long."""
        self.short: deque[PendingRequest] = deque()
        """Its short requests, in the order of arrival."""


class DeadlineTimer:
    """Expires pending requests at their deadlines.

    All requests share one event-loop timer: one timer each would cost more than to scan all of them
    when it fires.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start with no request and no timer."""
        self._loop = loop
        self._requests: set[PendingRequest] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = math.inf

    def add(self, request: PendingRequest) -> None:
        """Expire a request at its deadline, unless it is removed before."""
        self._requests.add(request)
        if request.deadline < self._fires_at:
            self._schedule(request.deadline)

    def remove(self, request: PendingRequest) -> None:
        """Stop watching a request."""
        self._requests.remove(request)

    def _schedule(self, fires_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = fires_at
        self._timer = self._loop.call_later(fires_at - time.perf_counter(), self._expire_due)

    def _expire_due(self) -> None:
        self._timer, self._fires_at = None, math.inf
        now = time.perf_counter()
        for request in self._requests:
            if request.deadline <= now:
                request.expire()
        pending = [request.deadline for request in self._requests if request.deadline > now]
        if pending:
            self._schedule(min(pending))


def _concatenated(results: Sequence[Result]) -> Result:
    """Concatenate the rows of results of one type."""
    first = results[0]
    if len(results) == 1:
        return first
    if isinstance(first, Prediction):
        return Prediction.concatenate(cast(Sequence[Prediction], results))
    if isinstance(first, Summary):
        return Summary.concatenate(cast(Sequence[Summary], results))
    return concatenate(cast(Sequence[Uncertainty], results))
