"""Batches the rows of concurrent requests into inference runs. Knows no HTTP and no file.

All requests that were queued during one run form the next batch; no timer delays a batch. Runs
happen one at a time: on a thread, so that the event loop stays free, or inline, on the event-loop
thread, where they are so short that waking the other thread would add noticeably. A run whose
requests are all cancelled or timed out is terminated.
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
from model.dropout.sampling_methods import FixedSamples, Sampling
from model.graphs.sessions import RunOptions, run_options
from model.inference.prediction import Prediction
from model.uncertainty.uncertainty_measures import Summary, Uncertainty
from service.engine.latency_estimator import Costs, LatencyEstimator
from service.engine.pending_requests import DeadlineTimer, Floats, PendingRequest, Result
from service.engine.request_scheduling import SLICE_SECONDS, Batch, RequestQueue
from service.engine.thread_priority import lower_thread_priority
from service.engine.traced_runs import note_in_traces
from service.errors import OverloadedError, StoppingError
from service.observability.metrics_recorder import Metrics
from service.observability.triton_statistics import ModelStatistics

_TERMINATION_SECONDS = 1.0
"""How long `close` waits for a run that it has terminated."""


class RowPredictor(Protocol):
    """The part of `model.inference.predictor.Predictor` that the batcher uses."""

    def predict(self, images: Floats) -> Prediction:
        """Run trunk and head once, without dropout; images are float32 [N, C, H, W]."""
        ...

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        """Run the head with dropout active; requests with equal `sampling` share one call."""
        ...

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        """Return a summary of the same samples, which is cheaper to compute."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A predictor whose runs can be terminated from another thread."""

    run_options: RunOptions | None
    """The options of the runs that begin from now on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one batcher, in rows and seconds."""

    batch_rows: int
    queue_rows: int
    timeout_seconds: float
    inline_seconds: float = 0.002
    """Runs estimated to take no longer run inline; waking the thread costs a tenth of this."""
    slice_seconds: float = SLICE_SECONDS
    """Requests estimated to take longer run in slices, between which other requests run."""


class Batcher:
    """The queue and the runs of one predictor. Create it inside a running event loop."""

    def __init__(
        self,
        name: str,
        predictor: RowPredictor,
        limits: Limits,
        metrics: Metrics,
        version: str = "1",
        costs: Costs | None = None,
    ) -> None:
        """Start with an empty queue.

        name, version: of the model, for metrics and the thread's name.
        costs: the measured costs of the network; None: no request is refused as too costly, and
            none runs in slices.
        """
        self._predictor = predictor
        self._limits = limits
        self._latency = LatencyEstimator(costs)
        self._queue = RequestQueue(limits.batch_rows, limits.slice_seconds, self._latency)
        self._running: Batch | None = None
        """The batch that runs on the thread."""
        self._interruptible = predictor if isinstance(predictor, Interruptible) else None
        self._run_options = run_options() if self._interruptible else None
        """The options of the runs on the thread; None: the runs cannot be terminated."""
        self.is_background = False
        """Whether runs give way to those of other versions: they are never inline, their thread has
        a lower priority, and the series of what clients get do not count them."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._ran_inline_this_turn = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._deadlines = DeadlineTimer(self._loop)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"inference-{name}")
        self._background_thread = ThreadPoolExecutor(
            1, thread_name_prefix=f"shadow-{name}", initializer=lower_thread_priority
        )
        self._deferred = metrics.deferred
        self._unregister_queue_gauge = metrics.deferred.add_gauge_source(
            metrics.queue_rows.labels(name),
            lambda: 0 if self.is_background else self._queue.rows,
        )
        self._batch_rows = metrics.batch_rows.labels(name)
        self._trunk_seconds = metrics.stage.labels("trunk")
        self._head_seconds = metrics.stage.labels("head")
        self.statistics = ModelStatistics(metrics, name, version)
        """The statistics of deterministic predictions."""
        self.sampled_statistics = ModelStatistics(metrics, name + SAMPLED_SUFFIX, version)
        """The statistics of predictions with dropout active."""

    @property
    def min_row_seconds(self) -> float:
        """The seconds of a deterministic prediction at the fastest rate so far; 0: unknown."""
        return self._latency.min_row_seconds(None)

    def predict(
        self, images: Floats, timeout_seconds: float | None = None
    ) -> Coroutine[Any, Any, Prediction]:
        """Predict float32 [N, C, H, W] deterministically.

        When the caller is cancelled, rows that have not run yet never run.

        timeout_seconds: how long the caller waits, at most the configured limit; None: the limit.

        Raises:
            TooCostlyError: the request alone would take longer than the timeout.
            OverloadedError: the queue is full, or would take longer than the timeout.
            DeadlineError: the result was not ready in time.
            StoppingError: the batcher is closing.
        """
        return cast(Coroutine[Any, Any, Prediction], self._submit(images, None, timeout_seconds))

    def infer(
        self, images: Floats, sampling: Sampling | None, timeout_seconds: float | None
    ) -> Coroutine[Any, Any, Result]:
        """Predict as `sampling` describes: None as `predict`, otherwise with dropout active.

        Waits and raises as `predict`.
        """
        return self._submit(images, sampling, timeout_seconds)

    def uncertainty(
        self, images: Floats, sampling: Sampling, timeout_seconds: float | None = None
    ) -> Coroutine[Any, Any, Uncertainty]:
        """Predict float32 [N, C, H, W] with dropout active; waits and raises as `predict`."""
        result = self._submit(images, sampling, timeout_seconds)
        return cast(Coroutine[Any, Any, Uncertainty], result)

    async def close(self, timeout_seconds: float | None = None) -> None:
        """Finish the pending requests, accept no new ones, and end the thread.

        timeout_seconds: afterwards the current run is terminated and the remaining requests fail;
            None: wait until all are finished.
        """
        self._closing = True
        if not await self._wait_until_idle(timeout_seconds):
            self._abort()
            await self._wait_until_idle(_TERMINATION_SECONDS if self._run_options else 0)
        self._unregister_queue_gauge()
        for thread in (self._thread, self._background_thread):
            thread.shutdown(wait=self._idle.is_set())

    async def _wait_until_idle(self, seconds: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self._idle.is_set()

    def _abort(self) -> None:
        """Fail all pending requests and terminate the current run."""
        running = self._running.requests if self._running else ()
        for request in (*self._queue, *running):
            request.fail(StoppingError())
        self._terminate_if_unawaited()

    async def _submit(
        self, images: Floats, sampling: Sampling | None, timeout_seconds: float | None
    ) -> Result:
        if self._closing:
            raise StoppingError
        queued = self._queue.rows
        if queued and not self._queue.has_room(len(images), self._limits.queue_rows):
            raise OverloadedError(f"{queued} images are waiting already; try again in a second.")
        limit = self._limits.timeout_seconds
        request = PendingRequest(
            images, sampling, limit if timeout_seconds is None else min(timeout_seconds, limit)
        )
        if (
            timeout_seconds is None
            and not self._ran_inline_this_turn  # requests that arrive together are batched
            and self._idle.is_set()
            and self._fits_inline((request,))
        ):
            return self._infer_now(request)
        future = self._enqueue(request)
        try:
            return await future
        finally:
            self._discard(request)
            del future

    def _fits_inline(self, requests: Sequence[PendingRequest]) -> bool:
        if self.is_background:
            return False
        return self._latency.run_seconds(requests) <= self._limits.inline_seconds

    def _infer_now(self, request: PendingRequest) -> Result:
        self._ran_inline_this_turn = True
        (batch,) = self._infer_with_retry(Batch([request], request.rows))
        result = batch.pop_results()[0]
        self._loop.call_soon(self._finish_inline_turn, batch)
        try:
            if isinstance(result, Exception):
                raise result
            return result
        finally:
            del result  # breaks the cycle from an error by its traceback to this frame and back

    def _finish_inline_turn(self, batch: Batch) -> None:
        self._ran_inline_this_turn = False
        self._record(batch)  # after the response has been written

    def _enqueue(self, request: PendingRequest) -> "asyncio.Future[Result]":
        self._queue.add(request)
        request.future = self._loop.create_future()
        self._deadlines.add(request)
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(
                self._run_next_batch
            )  # after requests that arrived together are queued
        return request.future

    def _discard(self, request: PendingRequest) -> None:
        """Drop a request that is finished, or whose caller was cancelled."""
        self._deadlines.remove(request)
        request.future = (
            None  # breaks the cycle from an error by its traceback to the caller and back
        )
        if request.queued_rows:
            self._queue.remove(request)
        if self._running is not None:
            self._terminate_if_unawaited()

    def _terminate_if_unawaited(self) -> None:
        if self._running and self._run_options and not self._running.is_awaited():
            self._run_options.terminate = True

    def _run_next_batch(self) -> None:
        """Run the next batch, inline if it is short enough, else on the thread."""
        batch = self._queue.next_batch()
        if batch is None:
            self._finish(())
        elif batch.row_slice is None and self._fits_inline(batch.requests):
            self._run_batch_inline(batch)
        else:
            self._run_batch_on_thread(batch)

    def _run_batch_inline(self, batch: Batch) -> None:
        try:
            batches = self._infer_with_retry(batch)
        except BaseException as error:  # KeyboardInterrupt, for example, which is not handled here
            self._finish([_fail_all(batch, error)])
            raise
        self._finish(batches)

    def _run_batch_on_thread(self, batch: Batch) -> None:
        self._running = batch
        try:
            thread = self._background_thread if self.is_background else self._thread
            running = self._loop.run_in_executor(thread, self._infer_on_thread, batch)
        except RuntimeError as error:  # the executor cannot start its thread
            self._finish([_fail_all(batch, error)])
            return
        running.add_done_callback(partial(self._finish_on_thread, batch))

    def _finish_on_thread(self, batch: Batch, ended: "asyncio.Future[Sequence[Batch]]") -> None:
        try:
            batches = ended.result()
        except BaseException as error:  # SystemExit, for example
            batches = [_fail_all(batch, error)]
        if self._run_options:
            self._run_options.terminate = False  # the terminated run has ended
        self._finish(batches)

    def _finish(self, batches: Sequence[Batch]) -> None:
        self._running = None
        try:
            for batch in batches:
                self._deliver(batch)
            for batch in batches:
                self._record(batch)
                self._queue.finish(batch)
        finally:  # even after an error, the pending requests have to run
            if self._queue:
                self._loop.call_soon(self._run_next_batch)
            else:
                self._idle.set()

    def _deliver(self, batch: Batch) -> None:
        """Give each request its result or error, unless its caller no longer waits."""
        for request, result in zip(batch.requests, batch.pop_results(), strict=True):
            if isinstance(result, Exception):
                request.fail(result)
            elif batch.row_slice is None:
                request.set_result(result)
            else:
                request.add_slice_result(result)

    def _infer_on_thread(self, batch: Batch) -> Sequence[Batch]:
        """Run a batch on the thread, with the options by which the event loop can terminate it."""
        if self._interruptible is None:
            return self._infer_with_retry(batch)
        self._interruptible.run_options = self._run_options
        try:
            return self._infer_with_retry(batch)
        finally:
            self._interruptible.run_options = None  # inline runs are faster without options

    def _infer_with_retry(self, batch: Batch) -> Sequence[Batch]:
        """Run all requests together; if that fails, each alone, so that one cannot fail another.

        Returns one batch for each run that counts: the joint one, or one for each request.
        """
        batch.started = time.perf_counter()
        try:
            batch.results = self._infer(batch)
            batch.ended = time.perf_counter()
        except Exception as error:
            if len(batch.requests) > 1 and batch.is_awaited():
                requests = [request for request in batch.requests if request.is_awaited()]
                return [
                    retried
                    for request in requests
                    for retried in self._infer_with_retry(Batch([request], request.rows))
                ]
            batch.results = [error] * len(batch.requests)
        return [batch]

    def _infer(self, batch: Batch) -> Sequence[Result]:
        """Run the trunk once for all rows, and the head once for each distinct sampling."""
        requests = batch.requests
        images = _concatenated([request.images for request in requests])
        if batch.row_slice is not None:
            images = images[batch.row_slice]
        prediction = self._predictor.predict(images)
        batch.trunk_ended = time.perf_counter()
        if len(requests) == 1:
            return [self._result_for(prediction, requests[0].sampling)]
        results: dict[int, Result] = {}
        indices_by_sampling: dict[Sampling | None, list[int]] = {}
        for index, request in enumerate(requests):
            indices_by_sampling.setdefault(request.sampling, []).append(index)
        for sampling, indices in indices_by_sampling.items():
            subset = prediction
            if len(indices) < len(requests):
                subset = prediction.take(
                    _row_indices(indices, [request.rows for request in requests])
                )
            result = self._result_for(subset, sampling)
            start = 0
            for index in indices:
                stop = start + requests[index].rows
                results[index] = result if len(indices) == 1 else result.take(slice(start, stop))
                start = stop
        return [results[index] for index in range(len(requests))]

    def _result_for(self, prediction: Prediction, sampling: Sampling | None) -> Result:
        if sampling is None:
            return prediction
        if isinstance(sampling, FixedSamples) and sampling.summary_only:
            return self._predictor.summary(prediction, sampling)
        return self._predictor.uncertainty(prediction, sampling)

    def _record(self, batch: Batch) -> None:
        """Update the latency estimates, and the metrics at a later turn of the loop."""
        if not batch.ended:
            return
        times = batch.started, batch.trunk_ended, batch.ended
        seconds = batch.ended - batch.started
        self._latency.observe(batch.requests, batch.rows, seconds)
        if seconds > self._limits.inline_seconds:  # shorter runs are too noisy
            trunk_seconds = batch.trunk_ended - batch.started
            self._latency.observe_rates(
                batch.requests, batch.rows, trunk_seconds, seconds - trunk_seconds
            )
        if self.is_background:
            return
        note_in_traces(batch)
        queued_at = [(request.sampling is None, request.queued_at) for request in batch.requests]
        self._deferred.defer(self._count, times, batch.rows, queued_at)

    def _count(
        self, times: tuple[float, float, float], rows: int, queued_at: list[tuple[bool, float]]
    ) -> None:
        """Count a run in the metrics.

        times: when the run started, when its trunk ended, and when it ended.
        queued_at: for each request, whether it was deterministic, and when it was queued.
        """
        started, trunk_ended, ended = times
        self._batch_rows.observe(rows)
        self._trunk_seconds.observe(trunk_ended - started)
        waits = [started - since for deterministic, since in queued_at if deterministic]
        sampled_waits = [started - since for deterministic, since in queued_at if not deterministic]
        if waits:
            self.statistics.count_run(ended - started, sum(waits), len(waits))
        if sampled_waits:
            self._head_seconds.observe(ended - trunk_ended)
            self.sampled_statistics.count_run(
                ended - started, sum(sampled_waits), len(sampled_waits)
            )


def _fail_all(batch: Batch, error: BaseException) -> Batch:
    """Make `error` the result of every request of a run that did not end normally."""
    batch.ended = 0.0
    batch.results = [
        RuntimeError(f"A run of the network broke off ({error!r}).") for _ in batch.requests
    ]
    return batch


def _row_indices(indices: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return the batch rows, int64, of some of the requests, which have `lengths` rows each."""
    ends = np.cumsum(lengths)
    return np.concatenate([np.arange(ends[each] - lengths[each], ends[each]) for each in indices])


def _concatenated(arrays: Sequence[Floats]) -> Floats:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
