"""A pool of sandbox processes, which decode costly bodies.

An image file of a few hundred kilobytes can occupy a decoder for minutes or take gigabytes, a JSON
text can hold the GIL for seconds, and neither can be interrupted in this process. A sandbox process
is killed at its time limit and cannot exceed its memory limit. No client ever occupies all
processes. Knows no image format.
"""

import asyncio
import time
from typing import Any

import structlog

from model.container_resources import available_memory_bytes, available_processors
from model.errors import DropserveError
from model.images.preprocessing import PEAK_BYTES_PER_PIXEL, InputSpec
from service.codecs.body_to_images import MEMORY_BYTES_PER_JSON_BYTE
from service.codecs.image_limits import Limits
from service.errors import (
    STATUS_AND_CODE,
    BodyTooCostlyError,
    DeadlineError,
    OverloadedError,
    StoppingError,
)
from service.sandbox.child_process_handle import Bytes, SandboxProcess
from service.sandbox.child_process_messages import RESERVED, Task, encode_message
from service.sandbox.fair_queue import FairQueue, Job
from service.sandbox.memory_budget import MemoryBudget
from service.settings import ServiceSettings

_BASE_PROCESS_BYTES = 2**26
"""Memory limit of a process without the memory for bodies."""
_MAX_BODY_COPIES = 6
"""Copies of a body that a process may hold at once: compressed, decompressed, stripped, …"""
_MAX_DEFAULT_PROCESSES = 8
"""Default limit for any number of processors, since each process takes 48 megabytes."""
_MAX_QUEUED_BODIES = 8
"""The bodies in the pool may have as many bytes as this number of the largest bodies."""
_START_TIMEOUT_SECONDS = 30
_FIRST_START_DELAY_SECONDS = 1.5
"""Until then the service needs the processor to load its models."""
_START_COST_SECONDS = 0.5
"""Processor time to replace a killed process, which is charged to the client that caused it."""
_WALL_CLOCK_FACTOR = 3
"""The wall-clock limit of a task is this multiple of its limit of processor time."""

logger = structlog.stdlib.get_logger("service")


class SandboxPool:
    """Runs tasks in sandbox processes. Must be used in one event loop."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._cpu_seconds = settings.decode_timeout_seconds
        self._timeout_seconds = settings.inference_timeout_seconds
        self._max_processes = _max_processes(settings)
        self._queue = FairQueue(
            max_jobs=settings.max_concurrent_requests,
            max_bytes=_MAX_QUEUED_BODIES * settings.max_body_bytes,
            max_running_per_client=max(1, self._max_processes - 1),  # one is left for others
        )
        # All processes together may take as much memory as one may take for the largest image.
        self._memory = MemoryBudget(_working_bytes(settings))
        self._process_bytes = (
            _BASE_PROCESS_BYTES
            + _MAX_BODY_COPIES * settings.max_body_bytes
            + self._memory.total_bytes
        )
        self._idle: list[SandboxProcess] = []
        self._process_count = 0
        """Processes that are running or starting."""
        self._starting_count = 0
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaping: set[asyncio.Future[None]] = set()

    def start_soon(self) -> None:
        """Schedule the start of a first process, so that the first large body need not wait."""
        loop = asyncio.get_running_loop()
        loop.call_later(_FIRST_START_DELAY_SECONDS, self._start_first_process)

    async def close(self) -> None:
        """Kill every process, and fail all jobs with StoppingError."""
        self._is_closed = True
        for job in self._queue.waiting():
            _fail(job, StoppingError())
        for task in list(self._tasks):
            task.cancel()
        for process in self._idle:
            process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._reaping)
        for process in self._idle:
            await asyncio.to_thread(process.reap)
        self._idle.clear()

    async def run(
        self, task: Task, body: bytes, client: str, max_answer_bytes: int
    ) -> tuple[dict[str, Any], Bytes]:
        """Run a task in a sandbox process, when it is the turn of its client.

        client: the client's address. max_answer_bytes: a longer result counts as a fault of the
        process, which is killed.

        Raises:
            OverloadedError: the queue is full. DeadlineError: the task was not done in time.
            BodyTooCostlyError: the task exceeded its time or memory limit.
            DropserveError: the task found the body invalid.
        """
        if self._is_closed:
            raise StoppingError
        loop = asyncio.get_running_loop()
        job = Job(task, body, client, loop.create_future(), max_answer_bytes)
        self._queue.add(job)
        timer = loop.call_later(self._timeout_seconds, self._time_out, job)
        try:
            self._dispatch()
            content, data = await job.result
        finally:
            timer.cancel()
            if job.running is not None:
                job.running.cancel()
            self._queue.remove(job)
        _raise_error(content)
        return content, data

    def task(self, kind: Any, spec: InputSpec, limits: Limits, **more: Any) -> Task:
        """Build a task with the configured limit of processor time."""
        return Task(kind, spec.model_dump(), limits, self._cpu_seconds, **more)

    def _time_out(self, job: Job) -> None:
        _fail(
            job,
            DeadlineError(
                f"No answer within {self._timeout_seconds:g} seconds; try again later, with fewer "
                "or smaller images."
            ),
        )

    def _dispatch(self) -> None:
        """Assign jobs to the idle processes, and start a process if more jobs could run."""
        while self._idle and (job := self._queue.start_next()) is not None:
            self._start_job(job, self._idle.pop())
        if self._starting_count < len(self._queue.waiting()) and self._queue.has_next():
            self._start_process_soon()

    def _start_job(self, job: Job, process: SandboxProcess) -> None:
        """Run a job in a process, and charge its time to its client when it ends."""
        start = time.perf_counter()

        def on_done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            replacement_seconds = 0.0 if process.is_alive else _START_COST_SECONDS
            self._queue.finish(job, time.perf_counter() - start + replacement_seconds)
            self._release_memory(job)
            if task.cancelled():
                _fail(job, StoppingError())
            if not self._is_closed:
                self._dispatch()

        job.running = self._create_task(self._run_job(job, process))
        job.running.add_done_callback(on_done)

    def _create_task(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        return task

    async def _run_job(self, job: Job, process: SandboxProcess) -> None:
        """Run a job in a process, and kill the process if it exceeds a limit."""
        is_usable = False
        try:
            async with asyncio.timeout(_WALL_CLOCK_FACTOR * self._cpu_seconds) as deadline:
                content, data = await self._exchange(job, process, deadline)
            is_usable = True
            if not job.result.done():
                job.result.set_result((content, data))
        except TimeoutError:
            self._fail_too_costly(job, "takes too much time")
        except MemoryError:
            self._fail_too_costly(job, "takes too much memory")
        except (OSError, ValueError):  # the process has ended, or its message is invalid
            exceeded_cpu_time = await asyncio.to_thread(process.exceeded_cpu_time)
            self._fail_too_costly(
                job, f"takes too much {'time' if exceeded_cpu_time else 'memory'}"
            )
        finally:
            await self._return_process(process, is_usable=is_usable)

    async def _exchange(
        self, job: Job, process: SandboxProcess, deadline: asyncio.Timeout
    ) -> tuple[dict[str, Any], Bytes]:
        """Send a job to a process, grant the memory that it requests, and return its result."""
        await process.send(encode_message(job.task, len(job.body)))
        await process.send(job.body)
        while True:
            content, data = await process.receive(job.max_answer_bytes)
            if "needs" not in content:
                return content, data
            remaining = (deadline.when() or 0) - asyncio.get_running_loop().time()
            deadline.reschedule(None)  # the wait for memory is not charged to the job
            await self._reserve_memory(job, int(content["needs"]))
            deadline.reschedule(asyncio.get_running_loop().time() + remaining)
            await process.send(RESERVED)

    def _fail_too_costly(self, job: Job, why: str) -> None:
        logger.warning("body too costly", client=job.client, bytes=len(job.body), why=why)
        _fail(
            job,
            BodyTooCostlyError(
                f"To read this body {why}; send fewer, smaller or more simply encoded images."
            ),
        )

    async def _reserve_memory(self, job: Job, needed: int) -> None:
        """Reserve memory for a job until its next reservation or its end.

        The job first releases its earlier reservation. Otherwise two jobs could wait for each
        other's memory for ever. Raises MemoryError if so much can never be free.
        """
        self._release_memory(job)
        await self._memory.reserve(needed)
        job.reserved_bytes = needed

    def _release_memory(self, job: Job) -> None:
        self._memory.release(job.reserved_bytes)
        job.reserved_bytes = 0

    async def _return_process(self, process: SandboxProcess, *, is_usable: bool) -> None:
        """Return a process to the pool, or kill it and wait for its end."""
        if is_usable and not self._is_closed:
            self._idle.append(process)
            return
        self._process_count -= 1
        process.kill()
        self._reaping.add(reaping := asyncio.ensure_future(asyncio.to_thread(process.reap)))
        reaping.add_done_callback(self._reaping.discard)
        await asyncio.shield(reaping)

    def _start_first_process(self) -> None:
        if not self._process_count and not self._is_closed:
            self._start_process_soon()

    def _start_process_soon(self) -> None:
        if self._process_count < self._max_processes:
            self._process_count += 1
            self._starting_count += 1
            task = self._create_task(self._start_process())
            task.add_done_callback(self._tasks.discard)

    async def _start_process(self) -> None:
        """Start a process, and assign it a job once it is ready."""
        starting = asyncio.ensure_future(
            asyncio.to_thread(SandboxProcess.start, self._process_bytes)
        )
        is_ready = False
        try:
            process = await asyncio.shield(starting)
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                await process.receive(0)
            is_ready = True
        except (OSError, TimeoutError) as error:
            logger.error("sandbox process did not start", reason=str(error))  # noqa: TRY400
            self._fail_all()
        finally:
            self._starting_count -= 1
            try:
                process = await starting
            except OSError:  # the process was not created
                self._process_count -= 1
            else:
                await self._return_process(process, is_usable=is_ready)
        self._dispatch()

    def _fail_all(self) -> None:
        """Fail all waiting jobs, since no process can be started."""
        for job in self._queue.waiting():
            _fail(job, OverloadedError("Large bodies cannot be read now; try again later."))


def _fail(job: Job, error: DropserveError) -> None:
    if not job.result.done():
        job.result.set_exception(error)


_ERRORS = {kind.__name__: kind for kind in STATUS_AND_CODE}
"""The error classes by the names that a sandbox process sends."""


def _raise_error(content: dict[str, Any]) -> None:
    """Raise the error that a sandbox process has returned, if any."""
    if "error" in content:
        raise _ERRORS[content["error"]](content["sentence"])
    if content.get("memory"):
        raise BodyTooCostlyError(
            "To read this body takes too much memory; send fewer, smaller or more simply encoded "
            "images."
        )
    if "failure" in content:
        raise RuntimeError(f"A sandbox process failed:\n{content['failure']}")


def _max_processes(settings: ServiceSettings) -> int:
    """Number of processes of this worker; by default at least two, so that no client has all."""
    if settings.decode_processes is not None:
        return settings.decode_processes
    return min(_MAX_DEFAULT_PROCESSES, max(2, available_processors() // settings.workers))


def _working_bytes(settings: ServiceSettings) -> int:
    """Memory that all jobs of this worker may have reserved at once."""
    largest = max(
        PEAK_BYTES_PER_PIXEL * settings.max_image_pixels,
        MEMORY_BYTES_PER_JSON_BYTE * settings.max_body_bytes,
    )
    return min(largest, available_memory_bytes() // (2 * settings.workers))
