"""Which waiting rows go into the next run. Knows no network, no thread and no event loop.

Short jobs go in the order of their coming, those of several clients in turns, as many as fill a
run. A job that is estimated to take more than a tenth of the longest run is long: it is run alone,
in slices of its rows. While both kinds wait, each has as much time as the other, so a short job
waits for no more than a slice of somebody else's long one.

Of long jobs that with the least left goes first (shortest remaining processing time; Schrage 1968):
where not all can be answered in time, most are. In turns they would all be late together.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.dropout.sampling import FixedSamples
from service.engine.latency import LatencyEstimator
from service.engine.pending_requests import Answer, ClientQueue, PendingRequest
from service.errors import OverloadedError, TooCostlyError
from service.http.clients import CURRENT, Client

SLICE_SECONDS = 0.1
"""Longest run by default, as estimated: about what others may wait for."""

_SHORT_SHARE = 0.1
"""Of the longest run, what a short job takes at most: of several clients each has one in turn."""

_ADVISED_SHARE = 0.5
"""Of the time allowed, what a refused request is advised to take: others use the model as well."""


@dataclass(slots=True)
class Batch:
    """One run of the network; its times are seconds of `time.perf_counter`."""

    jobs: Sequence[PendingRequest]
    rows: int
    """Images in it."""
    part: slice | None = None
    """Which rows of the only job; None: all rows of each job."""
    started: float = 0.0
    trunk_ended: float = 0.0
    ended: float = 0.0
    """0 where it has failed."""
    answers: "Sequence[Answer | Exception]" = ()

    @property
    def seconds(self) -> float:
        """How long it took; 0 where it has failed."""
        return max(0.0, self.ended - self.started)

    def take_answers(self) -> "Sequence[Answer | Exception]":
        """Return the answers and keep none: an error's trace leads to this run."""
        answers, self.answers = self.answers, ()
        return answers

    def is_awaited(self) -> bool:
        """Tell whether anybody still waits for what it computes."""
        return any(job.has_caller() for job in self.jobs)


class RequestQueue:
    """The jobs that wait, and how many rows of them."""

    def __init__(self, batch_rows: int, slice_seconds: float, latency: LatencyEstimator) -> None:
        """Begin with none.

        batch_rows: most rows of one run, but for a short job that has more.
        slice_seconds: longest run, as estimated, but for a single row that takes longer.
        """
        self._batch_rows = batch_rows
        self._slice_seconds = slice_seconds
        self._short_job_seconds = _SHORT_SHARE * slice_seconds
        self._latency = latency
        self._short: deque[ClientQueue] = deque()
        """The clients that have short jobs; the one whose turn it is comes first."""
        self._long: list[PendingRequest] = []
        self._sliced: PendingRequest | None = None
        """The long job of which a slice runs."""
        self._lead = 0.0
        """Seconds that long jobs ran more than short ones while both waited."""
        self.rows = 0
        """Rows that wait."""
        self._clients: dict[Client | None, ClientQueue] = {}
        """Those of which anything waits."""
        self._short_seconds = 0.0
        """What all short jobs take, as estimated."""

    def __bool__(self) -> bool:
        return bool(self._short or self._long)

    def __iter__(self) -> Iterator[PendingRequest]:
        for queue in self._short:
            yield from queue.short
        yield from self._long

    def add(self, job: PendingRequest) -> None:
        """Let a job wait.

        Raises:
            TooCostlyError: it takes longer than its caller waits, even alone.
            OverloadedError: it would have to wait for longer than that.
        """
        rows, sampling, latency = job.rows, job.sampling, self._latency
        row_seconds = latency.trunk.recent if sampling is None else latency.row_seconds(sampling)
        job.seconds = seconds = rows * row_seconds
        client = CURRENT.get()
        queue = self._clients.get(client) or ClientQueue(client)
        if seconds > self._short_job_seconds and (rows > 1 or sampling is not None):
            self._require_affordable(job)
            busy_seconds = self._seconds_behind_others(job)
            if busy_seconds > job.timeout_seconds:
                raise _overloaded(job, busy_seconds)
            job.parts = []
            self._long.append(job)
        else:
            if self._short_seconds > job.timeout_seconds:
                raise _overloaded(job, self._short_seconds)
            self._short_seconds += seconds
            if not queue.short:
                self._short.append(queue)
            queue.short.append(job)
        if not queue.rows:
            self._clients[client] = queue
        job.queue = queue
        job.waiting = rows
        queue.rows += rows
        self.rows += rows

    def has_room(self, rows: int, most: int) -> bool:
        """Tell whether the present client may let more rows wait.

        There are `most` for all; who has less than an equal part of them may have that part still.
        """
        if self.rows + rows <= most:
            return True
        queue = self._clients.get(CURRENT.get())
        own = queue.rows if queue else 0
        clients = len(self._clients) + (not own)
        return clients > 1 and (own + rows) * clients <= most

    def _remove_rows(self, job: PendingRequest, rows: int) -> None:
        """Count rows of a job that wait no more."""
        job.waiting -= rows
        self.rows -= rows
        queue = job.queue
        queue.rows -= rows
        if not (queue.rows or queue.short) and self._clients.get(queue.client) is queue:
            del self._clients[queue.client]

    def take(self) -> Batch | None:
        """Take what is to be run next; None if nobody waits any more."""
        now = time.perf_counter()
        if not self._long:
            return self._take_short(now)
        if not self._short:
            self._lead = 0.0
        if self._lead > 0:
            return self._take_short(now) or self._take_slice(now)
        return self._take_slice(now) or self._take_short(now)

    def ran(self, run: Batch) -> None:
        """Count a run's time for its side, and let the rest of a long job wait again."""
        if run.part is not None:
            (job,) = run.jobs
            job.waiting_since = run.ended
            self._sliced = None
            self._lead += run.seconds
            if job.waiting:
                self._long.append(job)
        elif self._long:
            self._lead = max(0.0, self._lead - run.seconds)

    def withdraw(self, job: PendingRequest) -> None:
        """Let a job wait no more, and free its images; `take` passes over what is left of it."""
        self._remove_rows(job, job.waiting)
        job.parts = []
        if job is not self._sliced:  # whose images the run that has begun may still have to read
            job.images = job.images[:0].copy()

    def _take_short(self, now: float) -> Batch | None:
        """Take jobs in order, as many as fill one run; leave out who has hung up."""
        short, jobs = self._short, list[PendingRequest]()
        rows, seconds = 0, 0.0
        while short:
            queue = short[0]
            job = queue.short[0]
            if jobs and (
                rows + job.rows > self._batch_rows or seconds + job.seconds > self._slice_seconds
            ):
                break
            queue.short.popleft()
            if not queue.short:
                short.popleft()
            elif len(short) > 1:
                short.rotate(-1)
            self._short_seconds -= job.seconds
            self._remove_rows(job, job.waiting)
            if job.is_awaited(now):
                jobs.append(job)
                rows += job.rows
                seconds += job.seconds
        if not short:
            self._short_seconds = 0.0  # what rounding has left
        return Batch(jobs, rows) if jobs else None

    def _take_slice(self, now: float) -> Batch | None:
        while self._long:
            job = min(self._long, key=_remaining_seconds)
            self._long.remove(job)
            if job.is_awaited(now) and self._can_end_in_time(job, now):
                part = self._next_part(job)
                self._sliced = job
                return Batch([job], part.stop - part.start, part)
            self.withdraw(job)
        return None

    def _next_part(self, job: PendingRequest) -> slice:
        row_seconds = self._latency.row_seconds(job.sampling)  # as learnt meanwhile
        most = int(self._slice_seconds / row_seconds) if row_seconds else job.rows
        rows = min(max(1, most), self._batch_rows, job.waiting)
        start = job.rows - job.waiting
        self._remove_rows(job, rows)
        return slice(start, start + rows)

    def _can_end_in_time(self, job: PendingRequest, now: float) -> bool:
        least = job.waiting * self._latency.least_row_seconds(job.sampling)
        if now + least <= job.deadline:
            return True
        job.fail(
            OverloadedError(
                f"The model has too much to do to answer this within {job.timeout_seconds:g} "
                "seconds; try again later, with fewer images or samples."
            )
        )
        return False

    def _seconds_behind_others(self, job: PendingRequest) -> float:
        """Return how long `job` takes behind long jobs with less left; 0 where there is none."""
        others = self._long if self._sliced is None else [*self._long, self._sliced]
        left = [_remaining_seconds(each) for each in others]
        before = sum([seconds for seconds in left if seconds <= job.seconds])
        own = job.rows * self._latency.least_row_seconds(job.sampling)
        return before + own if before else 0.0

    def _require_affordable(self, job: PendingRequest) -> None:
        row_seconds = self._latency.least_row_seconds(job.sampling)
        seconds = job.rows * row_seconds
        if seconds <= job.timeout_seconds:
            return
        advised = job.timeout_seconds * _ADVISED_SHARE
        images = min(int(advised / row_seconds), job.rows)
        instead = [f"send at most {images} images at once"] if images else []
        if isinstance(job.sampling, FixedSamples):
            samples = self._latency.samples_within(advised / job.rows)
            instead += [f"draw at most {samples} samples"] if samples else []
        raise TooCostlyError(
            f"This would take about {seconds:.2g} seconds, and {job.timeout_seconds:g} are "
            f"allowed; {', or '.join(instead) or 'send one image, and draw no samples'}."
        )


def _overloaded(job: PendingRequest, seconds: float) -> OverloadedError:
    return OverloadedError(
        f"What waits already takes about {seconds:.0f} seconds, and this request may take "
        f"{job.timeout_seconds:g}; try again later, with fewer images or samples."
    )


def _remaining_seconds(job: PendingRequest) -> float:
    """Return how long its rows that still wait take, as was estimated when it came."""
    return job.seconds * job.waiting / job.rows
