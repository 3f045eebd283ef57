"""Rows from many requests -> one run. Knows no HTTP and no file.

Whatever has queued while the last run was under way goes next; nothing waits for a timer. Runs
happen one at a time on a thread of their own, so the event loop stays free.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.bundle import SAMPLED_SUFFIX
from model.predictor import Prediction
from model.sampling import Sampling
from model.uncertainty import Uncertainty
from service.errors import DeadlineError, NotReadyError, OverloadedError
from service.metrics import Metrics
from service.statistics import Statistics

Floats = NDArray[np.float32]


class RowPredictor(Protocol):
    """What is used of `model.predictor.Predictor`."""

    def predict(self, images: Floats) -> Prediction:
        """Run the whole network once."""
        ...

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        """Say how sure the answers are; requests with equal sampling share one call."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one queue."""

    batch_rows: int
    queue_rows: int
    timeout_seconds: float


Answer = Prediction | Uncertainty


@dataclass(slots=True, eq=False)
class _Job:
    images: Floats
    sampling: Sampling | None
    submitted: float
    answer: "asyncio.Future[Answer]" = field(repr=False)


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
        self._queue: deque[_Job] = deque()
        self._queued_rows = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"inference-{name}")
        self._queue_gauge = metrics.queue_rows.labels(name)
        self._batch_rows = metrics.batch_rows.labels(name)
        self._trunk_seconds = metrics.stage.labels("trunk")
        self._head_seconds = metrics.stage.labels("head")
        self.statistics = Statistics(metrics, name, version)
        """Of the deterministic answers."""
        self.sampled_statistics = Statistics(metrics, name + SAMPLED_SUFFIX, version)
        """Of the answers with dropout alive."""
        self._loop = asyncio.create_task(self._run(), name=f"batcher-{name}")

    async def predict(self, images: Floats, within: float | None = None) -> Prediction:
        """Answer float32 [N, C, H, W] deterministically.

        within: seconds that the caller waits; None, or more than the limit: the limit.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: no answer in time.
            NotReadyError: the batcher is closing.
        """
        answer = await self._submit(images, None, within)
        assert isinstance(answer, Prediction)
        return answer

    async def uncertainty(
        self, images: Floats, sampling: Sampling, within: float | None = None
    ) -> Uncertainty:
        """Answer float32 [N, C, H, W] with dropout alive; waits and raises as `predict`."""
        answer = await self._submit(images, sampling, within)
        assert isinstance(answer, Uncertainty)
        return answer

    async def close(self) -> None:
        """Answer what is queued, take nothing more, and end the thread."""
        self._closing = True
        self._arrived.set()
        await self._loop
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
        seconds = limit if within is None else min(within, limit)
        answer = asyncio.get_running_loop().create_future()
        job = _Job(images, sampling, time.perf_counter(), answer)
        self._queue.append(job)
        self._count(len(images))
        self._arrived.set()
        try:
            async with asyncio.timeout(seconds):
                return await job.answer
        except TimeoutError:
            raise DeadlineError(
                f"No answer within {seconds:g} seconds; try again later, "
                "with fewer images or samples."
            ) from None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue or not self._closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            jobs = self._take()
            if jobs:
                answers = await loop.run_in_executor(self._thread, self._answer_each, jobs)
                _deliver(jobs, answers)

    def _take(self) -> list[_Job]:
        """Take waiting jobs in order, as many as fill one run; leave out who has hung up."""
        jobs: list[_Job] = []
        rows = 0
        while self._queue and (
            not jobs or rows + len(self._queue[0].images) <= self._limits.batch_rows
        ):
            job = self._queue.popleft()
            self._count(-len(job.images))
            if not job.answer.done():
                jobs.append(job)
                rows += len(job.images)
        return jobs

    def _count(self, rows: int) -> None:
        self._queued_rows += rows
        self._queue_gauge.inc(rows)

    def _answer_each(self, jobs: Sequence[_Job]) -> Sequence[Answer | Exception]:
        """One run for all jobs; if it fails, each alone, so that one cannot fail another."""
        try:
            return self._answer_together(jobs)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [answer for job in jobs for answer in self._answer_each([job])]

    def _answer_together(self, jobs: Sequence[_Job]) -> Sequence[Answer]:
        started = time.perf_counter()
        images = _joined([job.images for job in jobs])
        self._batch_rows.observe(len(images))
        with self._trunk_seconds.time():
            prediction = self._predictor.predict(images)
        bounds = np.cumsum([0, *(len(job.images) for job in jobs)])
        rows = [slice(start, stop) for start, stop in pairwise(bounds)]
        answers: list[Answer] = [prediction.take(part) for part in rows]
        for sampling in {job.sampling for job in jobs if job.sampling}:
            members = [index for index, job in enumerate(jobs) if job.sampling == sampling]
            chosen = np.concatenate([np.arange(rows[n].start, rows[n].stop) for n in members])
            with self._head_seconds.time():
                sampled = self._predictor.uncertainty(prediction.take(chosen), sampling)
            start = 0
            for index in members:
                count = len(jobs[index].images)
                answers[index] = sampled.take(slice(start, start + count))
                start += count
        self._count_run(jobs, started)
        return answers

    def _count_run(self, jobs: Sequence[_Job], started: float) -> None:
        seconds = time.perf_counter() - started
        for statistics, sampled in ((self.statistics, False), (self.sampled_statistics, True)):
            members = [job for job in jobs if (job.sampling is not None) is sampled]
            for job in members:
                statistics.waited(started - job.submitted)
            if members:
                statistics.ran(seconds, len(members))


def _deliver(jobs: Sequence[_Job], answers: Sequence[Answer | Exception]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.answer.done():  # its caller has given up meanwhile
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


def _joined(parts: Sequence[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
