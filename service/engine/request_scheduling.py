"""Decides which pending rows form the next batch. Knows no network, no thread and no event loop.

Short requests run in order of arrival, with clients taking turns (round robin), as many as fill a
batch. A request whose estimated run time is more than a tenth of the longest run is long: it runs
alone, in slices of its rows. While both are pending, short and long requests get equal run time, so
a short request waits for at most one slice of another client's long request.

Of the long requests, the one with the shortest remaining processing time runs first (SRPT; Schrage
1968): where not all can meet their deadlines, most do. Taking turns would make all of them late.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.dropout.sampling_methods import FixedSamples
from service.engine.latency_estimator import LatencyEstimator
from service.engine.pending_requests import ClientQueue, PendingRequest, Result
from service.errors import OverloadedError, TooCostlyError
from service.http.client_quotas import CURRENT_CLIENT, Client

SLICE_SECONDS = 0.1
"""The default limit of the estimated time of one run, which other requests have to wait for."""

_MAX_SHORT_SHARE = 0.1
"""A short request takes at most this share of the longest run, so that a batch has room for the
requests of several clients."""

_ADVISED_SHARE = 0.5
"""A refused request is advised to use this share of its timeout, as others use the model too."""


@dataclass(slots=True)
class Batch:
    """The rows of one inference run, its times by `time.perf_counter`, and its results."""

    requests: Sequence[PendingRequest]
    rows: int
    """The number of images in the batch."""
    row_slice: slice | None = None
    """Which rows of a single long request the batch has; None: all rows of each request."""
    started: float = 0.0
    trunk_ended: float = 0.0
    ended: float = 0.0
    """0 if the run has failed."""
    results: "Sequence[Result | Exception]" = ()

    @property
    def seconds(self) -> float:
        """The duration of the run; 0 if it has failed."""
        return max(0.0, self.ended - self.started)

    def pop_results(self) -> "Sequence[Result | Exception]":
        """Return the results and drop them: the traceback of an error refers to this batch."""
        results, self.results = self.results, ()
        return results

    def is_awaited(self) -> bool:
        """Return whether the caller of any of its requests still waits."""
        return any(request.is_awaited() for request in self.requests)


class RequestQueue:
    """The pending requests of all clients, and the scheduling policy described above."""

    def __init__(self, batch_rows: int, slice_seconds: float, latency: LatencyEstimator) -> None:
        """Create an empty queue.

        batch_rows: the maximum rows of one batch; a single short request may have more.
        slice_seconds: the maximum estimated time of one run; a single row may take longer.
        """
        self._batch_rows = batch_rows
        self._slice_seconds = slice_seconds
        self._max_short_seconds = _MAX_SHORT_SHARE * slice_seconds
        self._latency = latency
        self._short_clients: deque[ClientQueue] = deque()
        """The clients with pending short requests; the one whose turn it is comes first."""
        self._long: list[PendingRequest] = []
        self._sliced: PendingRequest | None = None
        """The long request of which a slice runs now."""
        self._long_lead_seconds = 0.0
        """How much longer long requests ran than short ones while both were pending; at least 0."""
        self.rows = 0
        """The number of queued rows of all requests."""
        self._clients: dict[Client | None, ClientQueue] = {}
        """The clients with pending requests."""
        self._short_seconds = 0.0
        """The estimated run time of all pending short requests."""

    def __bool__(self) -> bool:
        return bool(self._short_clients or self._long)

    def __iter__(self) -> Iterator[PendingRequest]:
        for queue in self._short_clients:
            yield from queue.short
        yield from self._long

    def add(self, request: PendingRequest) -> None:
        """Queue a request for the current client.

        Raises:
            TooCostlyError: even alone it would take longer than its timeout.
            OverloadedError: behind the requests that are pending it would take longer than that.
        """
        rows, sampling, latency = request.rows, request.sampling, self._latency
        row_seconds = latency.trunk.recent if sampling is None else latency.row_seconds(sampling)
        request.estimated_seconds = seconds = rows * row_seconds
        client = CURRENT_CLIENT.get()
        queue = self._clients.get(client) or ClientQueue(client)
        if seconds > self._max_short_seconds and (rows > 1 or sampling is not None):
            self._require_affordable(request)
            busy_seconds = self._seconds_behind_long(request)
            if busy_seconds > request.timeout_seconds:
                raise _overloaded(request, busy_seconds)
            request.slice_results = []
            self._long.append(request)
        else:
            if self._short_seconds > request.timeout_seconds:
                raise _overloaded(request, self._short_seconds)
            self._short_seconds += seconds
            if not queue.short:
                self._short_clients.append(queue)
            queue.short.append(request)
        if not queue.rows:
            self._clients[client] = queue
        request.queue = queue
        request.queued_rows = rows
        queue.rows += rows
        self.rows += rows

    def has_room(self, rows: int, max_rows: int) -> bool:
        """Return whether the current client may queue more rows.

        All clients together may have `max_rows`. When these are used up, a client with less than an
        equal share of them may still queue rows up to that share.
        """
        if self.rows + rows <= max_rows:
            return True
        queue = self._clients.get(CURRENT_CLIENT.get())
        own = queue.rows if queue else 0
        clients = len(self._clients) + (not own)
        return clients > 1 and (own + rows) * clients <= max_rows

    def _remove_rows(self, request: PendingRequest, rows: int) -> None:
        """Take rows of a request off all counts of queued rows."""
        request.queued_rows -= rows
        self.rows -= rows
        queue = request.queue
        queue.rows -= rows
        if not (queue.rows or queue.short) and self._clients.get(queue.client) is queue:
            del self._clients[queue.client]

    def next_batch(self) -> Batch | None:
        """Remove and return the next batch; None if nothing is pending."""
        now = time.perf_counter()
        if not self._long:
            return self._take_short(now)
        if not self._short_clients:
            self._long_lead_seconds = 0.0
        if self._long_lead_seconds > 0:
            return self._take_short(now) or self._take_slice(now)
        return self._take_slice(now) or self._take_short(now)

    def finish(self, batch: Batch) -> None:
        """Account for the time of a run, and queue the remaining rows of a long request again."""
        if batch.row_slice is not None:
            (request,) = batch.requests
            request.queued_at = batch.ended
            self._sliced = None
            self._long_lead_seconds += batch.seconds
            if request.queued_rows:
                self._long.append(request)
        elif self._long:
            self._long_lead_seconds = max(0.0, self._long_lead_seconds - batch.seconds)

    def remove(self, request: PendingRequest) -> None:
        """Remove a request and free its images; `next_batch` skips the entry that is left of it."""
        self._remove_rows(request, request.queued_rows)
        request.slice_results = []
        if request is not self._sliced:  # the run on the thread may not have read its images yet
            request.images = request.images[:0].copy()

    def _take_short(self, now: float) -> Batch | None:
        """Take as many short requests as fill a batch; drop those that nobody awaits any more."""
        clients, requests = self._short_clients, list[PendingRequest]()
        rows, seconds = 0, 0.0
        while clients:
            queue = clients[0]
            request = queue.short[0]
            if requests and (
                rows + request.rows > self._batch_rows
                or seconds + request.estimated_seconds > self._slice_seconds
            ):
                break
            queue.short.popleft()
            if not queue.short:
                clients.popleft()
            elif len(clients) > 1:
                clients.rotate(-1)
            self._short_seconds -= request.estimated_seconds
            self._remove_rows(request, request.queued_rows)
            if request.check_deadline(now):
                requests.append(request)
                rows += request.rows
                seconds += request.estimated_seconds
        if not clients:
            self._short_seconds = 0.0  # removes the rounding error
        return Batch(requests, rows) if requests else None

    def _take_slice(self, now: float) -> Batch | None:
        while self._long:
            request = min(self._long, key=_remaining_seconds)
            self._long.remove(request)
            if request.check_deadline(now) and self._can_meet_deadline(request, now):
                row_slice = self._next_slice(request)
                self._sliced = request
                return Batch([request], row_slice.stop - row_slice.start, row_slice)
            self.remove(request)
        return None

    def _next_slice(self, request: PendingRequest) -> slice:
        row_seconds = self._latency.row_seconds(
            request.sampling
        )  # the estimate may have changed since `add`
        max_rows = int(self._slice_seconds / row_seconds) if row_seconds else request.rows
        rows = min(max(1, max_rows), self._batch_rows, request.queued_rows)
        start = request.rows - request.queued_rows
        self._remove_rows(request, rows)
        return slice(start, start + rows)

    def _can_meet_deadline(self, request: PendingRequest, now: float) -> bool:
        min_seconds = request.queued_rows * self._latency.min_row_seconds(request.sampling)
        if now + min_seconds <= request.deadline:
            return True
        request.fail(
            OverloadedError(
                f"The model has too much to do to answer this within {request.timeout_seconds:g} "
                "seconds; try again later, with fewer images or samples."
            )
        )
        return False

    def _seconds_behind_long(self, request: PendingRequest) -> float:
        """Return how long `request` takes behind the long requests with less remaining time.

        0 if there are none.
        """
        long = self._long if self._sliced is None else [*self._long, self._sliced]
        remaining = [_remaining_seconds(each) for each in long]
        before = sum([seconds for seconds in remaining if seconds <= request.estimated_seconds])
        own = request.rows * self._latency.min_row_seconds(request.sampling)
        return before + own if before else 0.0

    def _require_affordable(self, request: PendingRequest) -> None:
        row_seconds = self._latency.min_row_seconds(request.sampling)
        seconds = request.rows * row_seconds
        if seconds <= request.timeout_seconds:
            return
        advised = request.timeout_seconds * _ADVISED_SHARE
        images = min(int(advised / row_seconds), request.rows)
        instead = [f"send at most {images} images at once"] if images else []
        if isinstance(request.sampling, FixedSamples):
            samples = self._latency.samples_within_time(advised / request.rows)
            instead += [f"draw at most {samples} samples"] if samples else []
        raise TooCostlyError(
            f"This would take about {seconds:.2g} seconds, and {request.timeout_seconds:g} are "
            f"allowed; {', or '.join(instead) or 'send one image, and draw no samples'}."
        )


def _overloaded(request: PendingRequest, seconds: float) -> OverloadedError:
    return OverloadedError(
        f"What waits already takes about {seconds:.0f} seconds, and this request may take "
        f"{request.timeout_seconds:g}; try again later, with fewer images or samples."
    )


def _remaining_seconds(request: PendingRequest) -> float:
    """Return the run time of its queued rows, as estimated when it was queued."""
    return request.estimated_seconds * request.queued_rows / request.rows
