"""Who waits for a run of the network, and how long. Knows no queue and no network."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from model.dropout.sampling import AdaptiveSamples, Sampling
from model.inference.predictor import Prediction
from model.uncertainty.summary import Summary, Uncertainty, joined
from service.errors import DeadlineError
from service.http.clients import Client

Floats = NDArray[np.float32]
Answer = Prediction | Uncertainty | Summary


class PendingRequest:
    """The rows of one request, and its caller."""

    __slots__ = (
        "answer",
        "deadline",
        "images",
        "kind",
        "parts",
        "queue",
        "rows",
        "sampling",
        "seconds",
        "timeout_seconds",
        "waiting",
        "waiting_since",
    )

    def __init__(self, images: Floats, sampling: Sampling | None, timeout_seconds: float) -> None:
        """Take float32 [N, C, H, W], and the seconds that the caller waits."""
        self.images = images
        self.rows = len(images)
        self.sampling = sampling
        self.kind: object = None if isinstance(sampling, AdaptiveSamples) else sampling or "plain"
        """What decides how long one row of it takes; None: nothing does, beforehand."""
        self.timeout_seconds = timeout_seconds
        self.waiting_since = time.perf_counter()
        """When it came; the rest of a long job waits anew after each slice."""
        self.deadline = self.waiting_since + timeout_seconds
        """When its caller gives up."""
        self.answer: asyncio.Future[Answer] | None = None
        """Where its caller waits, unless it was answered at once."""
        self.queue: ClientQueue
        """What waits of its client; set by the queue."""
        self.waiting = 0
        """Rows that wait in the queue."""
        self.seconds: float
        """What all its rows are estimated to take; set by the queue."""
        self.parts: list[Answer]
        """Answers of the slices that have run; set by the queue."""

    def has_caller(self) -> bool:
        """Tell whether somebody waits for its answer."""
        return self.answer is not None and not self.answer.done()

    def is_awaited(self, now: float) -> bool:
        """Tell whether its caller has not given up, nor is to."""
        if now > self.deadline:
            self.give_up()
        return self.answer is not None and not self.answer.done()

    def give_up(self) -> None:
        """Tell its caller that time is over."""
        self.fail(
            DeadlineError(
                f"No answer within {self.timeout_seconds:g} seconds; try again later, "
                "with fewer images or samples."
            )
        )

    def fail(self, error: Exception) -> None:
        """Tell its caller, if there still is one, why there is no answer."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)

    def deliver(self, answer: Answer) -> None:
        """Hand the answer to its caller, if there still is one."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    def deliver_part(self, part: Answer) -> None:
        """Keep the answer of a slice; with the last one, hand all of them to the caller."""
        if not self.has_caller():
            return
        self.parts.append(part)
        if not self.waiting:
            self.deliver(_joined(self.parts))
            self.parts = []


class ClientQueue:
    """What waits of one client."""

    __slots__ = ("client", "rows", "short")

    def __init__(self, client: Client | None) -> None:
        self.client = client
        self.rows = 0
        """Rows of all its jobs that wait, short and long."""
        self.short: deque[PendingRequest] = deque()
        """Its short jobs, in the order of their coming."""


class Deadlines:
    """One timer for all who wait: one for each would take longer than to look at them all, once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with nobody."""
        self._loop = loop
        self._waiting: set[PendingRequest] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def add(self, job: PendingRequest) -> None:
        """Let a job give up in time."""
        self._waiting.add(job)
        if job.deadline < self._rings_at:
            self._set(job.deadline)

    def remove(self, job: PendingRequest) -> None:
        """Forget a job."""
        self._waiting.remove(job)

    def _set(self, rings_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = rings_at
        self._timer = self._loop.call_later(rings_at - time.perf_counter(), self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        now = time.perf_counter()
        for job in self._waiting:
            if job.deadline <= now:
                job.give_up()
        left = [job.deadline for job in self._waiting if job.deadline > now]
        if left:
            self._set(min(left))


def _joined(parts: Sequence[Answer]) -> Answer:
    """Put the rows of answers of one kind one after another."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Prediction):
        return Prediction.joined(cast(Sequence[Prediction], parts))
    if isinstance(first, Summary):
        return Summary.joined(cast(Sequence[Summary], parts))
    return joined(cast(Sequence[Uncertainty], parts))
