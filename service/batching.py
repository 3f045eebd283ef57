"""Rows from many requests -> one run. Knows no HTTP and no file.

Whatever has queued while the last run was under way goes next; nothing waits for a timer. Runs
happen one at a time: on a thread of their own, so that the event loop stays free, or on the event
loop itself where they are so brief that waking the thread would count.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from model.bundle import SAMPLED_SUFFIX
from model.predictor import Prediction
from model.sampling import Fixed, Sampling
from model.uncertainty import Summary, Uncertainty
from service.errors import NotReadyError, OverloadedError
from service.jobs import Answer, Deadlines, Floats, Job
from service.metrics import Metrics
from service.statistics import Statistics


class RowPredictor(Protocol):
    """What is used of `model.predictor.Predictor`."""

    def predict(self, images: Floats) -> Prediction:
        """Run the whole network once."""
        ...

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        """Say how sure the answers are; requests with equal sampling share one call."""
        ...

    def summary(self, prediction: Prediction, how: Fixed) -> Summary:
        """Say it in brief."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one queue."""

    batch_rows: int
    queue_rows: int
    timeout_seconds: float
    brief_seconds: float = 0.002
    """A run that takes no longer holds up the event loop: to wake a thread takes a tenth of it."""


@dataclass(slots=True)
class _Run:
    """One run of the network; its times are seconds of `time.perf_counter`."""

    jobs: Sequence[Job]
    started: float = field(default_factory=time.perf_counter)
    trunk_ended: float = 0.0
    ended: float = 0.0
    """0 where it has failed."""
    answers: "Sequence[Answer | Exception]" = ()

    @property
    def rows(self) -> int:
        """Images in it."""
        return sum([job.rows for job in self.jobs])

    def let_go(self) -> "Sequence[Answer | Exception]":
        """Return the answers and keep none: an error's trace leads to this run."""
        answers, self.answers = self.answers, ()
        return answers

    def deliver(self) -> None:
        """Hand each job its answer, unless its caller has given up meanwhile."""
        for job, answer in zip(self.jobs, self.let_go(), strict=True):
            if job.answer is None or job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)


_MOST_KINDS = 64  # every seed is one, as its masks are drawn first


class _Pace:
    """How long runs take, as the last ones of each kind did."""

    def __init__(self) -> None:
        self._seconds_a_row: dict[object, float] = {}

    def expected(self, jobs: Sequence[Job]) -> float:
        """Seconds that a run will take; infinite where one of its kind was never seen."""
        known = self._seconds_a_row.get
        return sum([job.rows * known(job.kind, math.inf) for job in jobs])

    def note(self, run: _Run) -> None:
        """Learn from a run, if all of it was of one kind."""
        kind, *others = [job.kind for job in run.jobs]
        if kind is None or any(other != kind for other in others):
            return
        if len(self._seconds_a_row) > _MOST_KINDS:
            self._seconds_a_row.clear()
        self._seconds_a_row[kind] = (run.ended - run.started) / run.rows


class Batcher:
    """The queue in front of one predictor. Start it inside a running event loop."""

    def __init__(
        self,
        name: str,
        predictor: RowPredictor,
        limits: Limits,
        metrics: Metrics,
        version: str = "1",
    ) -> None:
        self._predictor = predictor
        self._limits = limits
        self._queue: deque[Job] = deque()
        self._queued_rows = 0
        self._pace = _Pace()
        self._idle = asyncio.Event()
        self._idle.set()
        self._had_one = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"inference-{name}")
        self._tally = metrics.tally
        self._stop_showing = metrics.tally.show(
            metrics.queue_rows.labels(name), lambda: self._queued_rows
        )
        self._batch_rows = metrics.batch_rows.labels(name)
        self._trunk_seconds = metrics.stage.labels("trunk")
        self._head_seconds = metrics.stage.labels("head")
        self.statistics = Statistics(metrics, name, version)
        """Of the deterministic answers."""
        self.sampled_statistics = Statistics(metrics, name + SAMPLED_SUFFIX, version)
        """Of the answers with dropout alive."""

    def predict(
        self, images: Floats, within: float | None = None
    ) -> Coroutine[Any, Any, Prediction]:
        """Answer float32 [N, C, H, W] deterministically.

        within: seconds that the caller waits; None, or more than the limit: the limit.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: no answer in time.
            NotReadyError: the batcher is closing.
        """
        return cast(Coroutine[Any, Any, Prediction], self._submit(images, None, within))

    def answer(
        self, images: Floats, sampling: Sampling | None, within: float | None
    ) -> Coroutine[Any, Any, Answer]:
        """Answer as `predict`, or with dropout alive, in brief where that is enough."""
        return self._submit(images, sampling, within)

    def uncertainty(
        self, images: Floats, sampling: Sampling, within: float | None = None
    ) -> Coroutine[Any, Any, Uncertainty]:
        """Answer float32 [N, C, H, W] with dropout alive; waits and raises as `predict`."""
        return cast(Coroutine[Any, Any, Uncertainty], self._submit(images, sampling, within))

    async def close(self) -> None:
        """Answer what is queued, take nothing more, and end the thread."""
        self._closing = True
        await self._idle.wait()
        self._stop_showing()
        self._thread.shutdown()

    async def _submit(
        self, images: Floats, sampling: Sampling | None, within: float | None
    ) -> Answer:
        if self._closing:
            raise NotReadyError("The server is stopping; send the request to another.")
        if self._queued_rows and self._queued_rows + len(images) > self._limits.queue_rows:
            raise OverloadedError(
                f"{self._queued_rows} images are waiting already; try again in a second."
            )
        limit = self._limits.timeout_seconds
        job = Job(images, sampling, limit if within is None else min(within, limit))
        if within is None and self._is_alone() and self._is_brief([job]):
            return self._answer_now(job)
        answer = self._queue_up(job)
        try:
            return await answer
        finally:
            self._deadlines.remove(job)
            job.answer = None  # an error's trace leads here: it must not lead back to the error
            del answer

    def _is_alone(self) -> bool:
        """Tell whether no other job is here, nor was answered in this turn of the event loop."""
        return self._idle.is_set() and not self._had_one

    def _is_brief(self, jobs: Sequence[Job]) -> bool:
        return self._pace.expected(jobs) <= self._limits.brief_seconds

    def _answer_now(self, job: Job) -> Answer:
        self._had_one = True
        (run,) = self._answer_each([job])
        answer = run.let_go()[0]
        self._loop.call_soon(self._end_turn, run)
        try:
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            del answer  # an error's trace leads here: it must not lead back to the error

    def _end_turn(self, run: _Run) -> None:
        self._had_one = False
        self._note_run(run)  # now that the answer is out

    def _queue_up(self, job: Job) -> "asyncio.Future[Answer]":
        job.answer = self._loop.create_future()
        self._queue.append(job)
        self._queued_rows += job.rows
        self._deadlines.add(job)
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(self._run)  # once whatever has arrived with this has queued
        return job.answer

    def _run(self) -> None:
        """Run what is queued, here if that is brief, else on the thread; then what has queued."""
        jobs = self._take()
        if self._is_brief(jobs):
            self._end(self._answer_each(jobs) if jobs else ())
            return
        running = self._loop.run_in_executor(self._thread, self._answer_each, jobs)
        running.add_done_callback(lambda ended: self._end(ended.result()))

    def _end(self, runs: Sequence[_Run]) -> None:
        try:
            for run in runs:
                run.deliver()
                self._note_run(run)
        finally:  # whatever happened, those who wait have their turn
            if self._queue:
                self._loop.call_soon(self._run)
            else:
                self._idle.set()

    def _take(self) -> list[Job]:
        """Take waiting jobs in order, as many as fill one run; leave out who has hung up."""
        jobs: list[Job] = []
        rows, now = 0, time.perf_counter()
        while self._queue and (not jobs or rows + self._queue[0].rows <= self._limits.batch_rows):
            job = self._queue.popleft()
            self._queued_rows -= job.rows
            if job.is_awaited(now):
                jobs.append(job)
                rows += job.rows
        return jobs

    def _answer_each(self, jobs: Sequence[Job]) -> Sequence[_Run]:
        """One run for all jobs; if it fails, each alone, so that one cannot fail another."""
        run = _Run(jobs)
        try:
            run.answers = self._answer_together(run)
            run.ended = time.perf_counter()
        except Exception as error:
            if len(jobs) > 1:
                return [again for job in jobs for again in self._answer_each([job])]
            run.answers = [error]
        return [run]

    def _answer_together(self, run: _Run) -> Sequence[Answer]:
        jobs = run.jobs
        prediction = self._predictor.predict(_joined([job.images for job in jobs]))
        run.trunk_ended = time.perf_counter()
        if len(jobs) == 1:
            return [self._answer_of(prediction, jobs[0].sampling)]
        answers: dict[int, Answer] = {}
        alike: dict[Sampling | None, list[int]] = {}
        for index, job in enumerate(jobs):
            alike.setdefault(job.sampling, []).append(index)
        for sampling, members in alike.items():
            part = prediction
            if len(members) < len(jobs):
                part = prediction.take(_rows_of(members, [job.rows for job in jobs]))
            answer = self._answer_of(part, sampling)
            start = 0
            for index in members:
                stop = start + jobs[index].rows
                answers[index] = answer if len(members) == 1 else answer.take(slice(start, stop))
                start = stop
        return [answers[index] for index in range(len(jobs))]

    def _answer_of(self, prediction: Prediction, sampling: Sampling | None) -> Answer:
        if sampling is None:
            return prediction
        if isinstance(sampling, Fixed) and sampling.brief:
            return self._predictor.summary(prediction, sampling)
        return self._predictor.uncertainty(prediction, sampling)

    def _note_run(self, run: _Run) -> None:
        if not run.ended:
            return
        self._pace.note(run)
        times = run.started, run.trunk_ended, run.ended
        jobs = [(job.rows, job.sampling is None, job.submitted) for job in run.jobs]
        self._tally.later(self._count_run, times, jobs)

    def _count_run(
        self, times: tuple[float, float, float], jobs: list[tuple[int, bool, float]]
    ) -> None:
        """Count a run; of each job there is how many rows, whether plain, and when submitted."""
        started, trunk_ended, ended = times
        self._batch_rows.observe(sum(rows for rows, _, _ in jobs))
        self._trunk_seconds.observe(trunk_ended - started)
        plain = [started - submitted for _, is_plain, submitted in jobs if is_plain]
        sampled = [started - submitted for _, is_plain, submitted in jobs if not is_plain]
        if plain:
            self.statistics.ran(ended - started, sum(plain), len(plain))
        if sampled:
            self._head_seconds.observe(ended - trunk_ended)
            self.sampled_statistics.ran(ended - started, sum(sampled), len(sampled))


def _rows_of(members: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return which rows belong to some of the jobs, whose numbers of rows are `lengths`."""
    ends = np.cumsum(lengths)
    return np.concatenate([np.arange(ends[each] - lengths[each], ends[each]) for each in members])


def _joined(parts: Sequence[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
