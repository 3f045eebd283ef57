"""Rows from many requests -> one run. Knows no HTTP and no file.

Whatever has queued while the last run was under way goes next; nothing waits for a timer. Runs
happen one at a time: on a thread of their own, so that the event loop stays free, or inline, on the
event loop itself, where they are so brief that waking the thread would count. A run that nobody
waits for any more is ended.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model.bundle.store import SAMPLED_SUFFIX
from model.dropout.sampling import FixedSamples, Sampling
from model.graphs.sessions import RunOptions, run_options
from model.inference.predictor import Prediction
from model.uncertainty.summary import Summary, Uncertainty
from service.engine.latency import Costs, LatencyEstimator
from service.engine.pending_requests import Answer, Deadlines, Floats, PendingRequest
from service.engine.scheduling import SLICE_SECONDS, Batch, RequestQueue
from service.errors import NotReadyError, OverloadedError
from service.observability.metrics import Metrics
from service.observability.model_statistics import Statistics

_STOPPING = "The server is stopping; send the request to another."
_TERMINATION_SECONDS = 1.0
"""How long a run that was told to end is waited for."""


class RowPredictor(Protocol):
    """What is used of `model.inference.predictor.Predictor`."""

    def predict(self, images: Floats) -> Prediction:
        """Run the whole network once."""
        ...

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        """Say how sure the answers are; requests with equal sampling share one call."""
        ...

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        """Say it in brief."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A predictor whose runs can be ended."""

    run_options: RunOptions | None
    """Of the runs that begin now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one queue."""

    batch_rows: int
    queue_rows: int
    timeout_seconds: float
    inline_seconds: float = 0.002
    """A run that takes no longer holds up the event loop: to wake a thread takes a tenth of it."""
    slice_seconds: float = SLICE_SECONDS
    """A request that is estimated to take longer is run in slices, between which others run."""


class Batcher:
    """The queue in front of one predictor. Start it inside a running event loop."""

    def __init__(
        self,
        name: str,
        predictor: RowPredictor,
        limits: Limits,
        metrics: Metrics,
        version: str = "1",
        costs: Costs | None = None,
    ) -> None:
        """Begin with nobody waiting.

        costs: what the network takes, as measured; None: no request is too costly, and none is run
            in slices.
        """
        self._predictor = predictor
        self._limits = limits
        self._latency = LatencyEstimator(costs)
        self._queue = RequestQueue(limits.batch_rows, limits.slice_seconds, self._latency)
        self._running: Batch | None = None
        """The run on the thread."""
        self._interruptible = predictor if isinstance(predictor, Interruptible) else None
        self._run_options = run_options() if self._interruptible else None
        """Of the runs on the thread; None: each run ends by itself."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._had_one = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"inference-{name}")
        self._tally = metrics.tally
        self._stop_showing = metrics.tally.show(
            metrics.queue_rows.labels(name), lambda: self._queue.rows
        )
        self._batch_rows = metrics.batch_rows.labels(name)
        self._trunk_seconds = metrics.stage.labels("trunk")
        self._head_seconds = metrics.stage.labels("head")
        self.statistics = Statistics(metrics, name, version)
        """Of the deterministic answers."""
        self.sampled_statistics = Statistics(metrics, name + SAMPLED_SUFFIX, version)
        """Of the answers with dropout alive."""

    def predict(
        self, images: Floats, timeout_seconds: float | None = None
    ) -> Coroutine[Any, Any, Prediction]:
        """Answer float32 [N, C, H, W] deterministically.

        Who cancels this is forgotten: what of it has not run yet never is.

        timeout_seconds: how long the caller waits; None, or more than the limit: the limit.

        Raises:
            TooCostlyError: it takes longer than that.
            OverloadedError: the queue is full, or takes longer than that.
            DeadlineError: no answer in time.
            NotReadyError: the batcher is closing.
        """
        return cast(Coroutine[Any, Any, Prediction], self._submit(images, None, timeout_seconds))

    def answer(
        self, images: Floats, sampling: Sampling | None, timeout_seconds: float | None
    ) -> Coroutine[Any, Any, Answer]:
        """Answer as `predict`, or with dropout alive, in brief where that is enough."""
        return self._submit(images, sampling, timeout_seconds)

    def uncertainty(
        self, images: Floats, sampling: Sampling, timeout_seconds: float | None = None
    ) -> Coroutine[Any, Any, Uncertainty]:
        """Answer float32 [N, C, H, W] with dropout alive; waits and raises as `predict`."""
        answer = self._submit(images, sampling, timeout_seconds)
        return cast(Coroutine[Any, Any, Uncertainty], answer)

    async def close(self, timeout_seconds: float | None = None) -> None:
        """Answer what is queued, take nothing more, and end the thread.

        timeout_seconds: then the run under way is ended, and who still waits is told so; None: all
            are answered, however long that takes.
        """
        self._closing = True
        if not await self._is_idle_within(timeout_seconds):
            self._abort()
            await self._is_idle_within(_TERMINATION_SECONDS if self._run_options else 0)
        self._stop_showing()
        self._thread.shutdown(wait=self._idle.is_set())

    async def _is_idle_within(self, seconds: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self._idle.is_set()

    def _abort(self) -> None:
        """Tell everybody that no answer comes, and end the run under way."""
        running = self._running.jobs if self._running else ()
        for job in (*self._queue, *running):
            job.fail(NotReadyError(_STOPPING))
        self._terminate_if_unawaited()

    async def _submit(
        self, images: Floats, sampling: Sampling | None, timeout_seconds: float | None
    ) -> Answer:
        if self._closing:
            raise NotReadyError(_STOPPING)
        waiting = self._queue.rows
        if waiting and not self._queue.has_room(len(images), self._limits.queue_rows):
            raise OverloadedError(f"{waiting} images are waiting already; try again in a second.")
        limit = self._limits.timeout_seconds
        job = PendingRequest(
            images, sampling, limit if timeout_seconds is None else min(timeout_seconds, limit)
        )
        if (
            timeout_seconds is None
            and not self._had_one  # nobody else is here, nor was answered in this turn of the loop
            and self._idle.is_set()
            and self._is_brief((job,))
        ):
            return self._answer_now(job)
        answer = self._queue_up(job)
        try:
            return await answer
        finally:
            self._forget(job)
            del answer

    def _is_brief(self, jobs: Sequence[PendingRequest]) -> bool:
        return self._latency.seen_seconds(jobs) <= self._limits.inline_seconds

    def _answer_now(self, job: PendingRequest) -> Answer:
        self._had_one = True
        (run,) = self._answer_each(Batch([job], job.rows))
        answer = run.take_answers()[0]
        self._loop.call_soon(self._end_turn, run)
        try:
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            del answer  # an error's trace leads here: it must not lead back to the error

    def _end_turn(self, run: Batch) -> None:
        self._had_one = False
        self._note_run(run)  # now that the answer is out

    def _queue_up(self, job: PendingRequest) -> "asyncio.Future[Answer]":
        self._queue.add(job)
        job.answer = self._loop.create_future()
        self._deadlines.add(job)
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(self._run)  # once whatever has arrived with this has queued
        return job.answer

    def _forget(self, job: PendingRequest) -> None:
        """Forget a job that is answered, or whose caller has gone."""
        self._deadlines.remove(job)
        job.answer = None  # an error's trace leads to the caller: it must not lead back
        if job.waiting:
            self._queue.withdraw(job)
        if self._running is not None:
            self._terminate_if_unawaited()

    def _terminate_if_unawaited(self) -> None:
        if self._running and self._run_options and not self._running.is_awaited():
            self._run_options.terminate = True

    def _run(self) -> None:
        """Run what is queued, inline if that is brief, else on the thread; then what has queued."""
        run = self._queue.take()
        if run is None:
            self._end(())
        elif run.part is None and self._is_brief(run.jobs):
            self._run_inline(run)
        else:
            self._run_on_thread(run)

    def _run_inline(self, run: Batch) -> None:
        try:
            runs = self._answer_each(run)
        except BaseException as error:  # an interrupt, say, which is not for this to handle
            self._end([_failed(run, error)])
            raise
        self._end(runs)

    def _run_on_thread(self, run: Batch) -> None:
        self._running = run
        try:
            running = self._loop.run_in_executor(self._thread, self._answer_on_thread, run)
        except RuntimeError as error:  # there can be no further thread
            self._end([_failed(run, error)])
            return
        running.add_done_callback(partial(self._end_on_thread, run))

    def _end_on_thread(self, run: Batch, ended: "asyncio.Future[Sequence[Batch]]") -> None:
        try:
            runs = ended.result()
        except BaseException as error:  # SystemExit, say: the thread hands on whatever it was
            runs = [_failed(run, error)]
        if self._run_options:
            self._run_options.terminate = False  # what it was to end is over
        self._end(runs)

    def _end(self, runs: Sequence[Batch]) -> None:
        self._running = None
        try:
            for run in runs:
                self._deliver(run)
            for run in runs:
                self._note_run(run)
                self._queue.ran(run)
        finally:  # whatever happened, those who wait have their turn
            if self._queue:
                self._loop.call_soon(self._run)
            else:
                self._idle.set()

    def _deliver(self, run: Batch) -> None:
        """Hand each job its answer, unless its caller has given up meanwhile."""
        for job, answer in zip(run.jobs, run.take_answers(), strict=True):
            if isinstance(answer, Exception):
                job.fail(answer)
            elif run.part is None:
                job.deliver(answer)
            else:
                job.deliver_part(answer)

    def _answer_on_thread(self, run: Batch) -> Sequence[Batch]:
        """Answer so that the event loop, which goes on meanwhile, can end it."""
        if self._interruptible is None:
            return self._answer_each(run)
        self._interruptible.run_options = self._run_options
        try:
            return self._answer_each(run)
        finally:
            self._interruptible.run_options = None  # which is faster

    def _answer_each(self, run: Batch) -> Sequence[Batch]:
        """One run for all jobs; if it fails, each alone, so that one cannot fail another."""
        run.started = time.perf_counter()
        try:
            run.answers = self._answer_together(run)
            run.ended = time.perf_counter()
        except Exception as error:
            if len(run.jobs) > 1 and run.is_awaited():
                jobs = [job for job in run.jobs if job.has_caller()]
                return [
                    again for job in jobs for again in self._answer_each(Batch([job], job.rows))
                ]
            run.answers = [error] * len(run.jobs)
        return [run]

    def _answer_together(self, run: Batch) -> Sequence[Answer]:
        jobs = run.jobs
        images = _joined([job.images for job in jobs])
        if run.part is not None:
            images = images[run.part]
        prediction = self._predictor.predict(images)
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
        if isinstance(sampling, FixedSamples) and sampling.brief:
            return self._predictor.summary(prediction, sampling)
        return self._predictor.uncertainty(prediction, sampling)

    def _note_run(self, run: Batch) -> None:
        if not run.ended:
            return
        times = run.started, run.trunk_ended, run.ended
        seconds = run.ended - run.started
        self._latency.note(run.jobs, run.rows, seconds)
        if seconds > self._limits.inline_seconds:  # shorter ones say too little
            trunk_seconds = run.trunk_ended - run.started
            self._latency.note_rates(run.jobs, run.rows, trunk_seconds, seconds - trunk_seconds)
        jobs = [(job.sampling is None, job.waiting_since) for job in run.jobs]
        self._tally.later(self._count_run, times, run.rows, jobs)

    def _count_run(
        self, times: tuple[float, float, float], rows: int, jobs: list[tuple[bool, float]]
    ) -> None:
        """Count a run; of each job there is whether it is plain, and since when it waited."""
        started, trunk_ended, ended = times
        self._batch_rows.observe(rows)
        self._trunk_seconds.observe(trunk_ended - started)
        plain = [started - since for is_plain, since in jobs if is_plain]
        sampled = [started - since for is_plain, since in jobs if not is_plain]
        if plain:
            self.statistics.ran(ended - started, sum(plain), len(plain))
        if sampled:
            self._head_seconds.observe(ended - trunk_ended)
            self.sampled_statistics.ran(ended - started, sum(sampled), len(sampled))


def _failed(run: Batch, error: BaseException) -> Batch:
    """Let all jobs of a run that has not come to an end fail."""
    run.ended = 0.0
    run.answers = [RuntimeError(f"A run of the network broke off ({error!r}).") for _ in run.jobs]
    return run


def _rows_of(members: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return which rows belong to some of the jobs, whose numbers of rows are `lengths`."""
    ends = np.cumsum(lengths)
    return np.concatenate([np.arange(ends[each] - lengths[each], ends[each]) for each in members])


def _joined(parts: Sequence[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
