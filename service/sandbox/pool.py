"""Reads bodies that may be dear in processes of their own, which are killed if they take too long.

An image of a few hundred kilobytes can keep a decoder busy for minutes or take gigabytes, a JSON
text can hold Python's lock for seconds, and neither can be interrupted in this process. Here they
end at a deadline and at a limit of memory, whatever is in them. Who waits is answered in turn:
an address that has used much time comes after those that have used little, never has all processes,
and never more than half of the line. Knows no format.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from model.errors import DropserveError
from model.images.preprocessing import PEAK_BYTES_OF_A_PIXEL, InputSpec
from service.codecs.image_bodies import JSON_BYTES
from service.codecs.limits import Limits
from service.errors import (
    STATUS_AND_CODE,
    BodyTooCostlyError,
    DeadlineError,
    NotReadyError,
    OverloadedError,
)
from service.resources import memory_bytes, processors
from service.sandbox.child import Bytes, SandboxProcess
from service.sandbox.messages import GO, Task, message
from service.settings import ServiceSettings

_OWN_BYTES = 2**26
"""Of memory that a process takes beside what a body comes to."""
_COPIES = 6
"""Of a body that a process may hold at once: packed, unpacked, reduced to its picture, …"""
_MANY_PROCESSES = 8
"""Of 48 megabytes each, and no more by default, however many processors there are."""
_BODIES_IN_LINE = 8
"""How many of the largest bodies may wait at once."""
_PATIENCE_AT_START_SECONDS = 30
_FIRST_START_SECONDS = 1.5
"""The service is loading its models until then, and has better use for the processor."""
_MANY_ACCOUNTS, _MOST_ACCOUNTS = 256, 4096
_START_SECONDS = 0.5
"""Of processor time that it takes to start a process in the place of one that was killed."""
_BY_THE_CLOCK = 3
"""How many times its processor time a task may take where the processor is shared with others."""

_STOPPING = "The server is stopping; send the request to another."

logger = structlog.stdlib.get_logger("service")


@dataclass(eq=False, slots=True)
class _Job:
    """A task that somebody waits for."""

    task: Task
    body: bytes
    client: str
    answer: "asyncio.Future[tuple[dict[str, Any], Bytes]]"
    most_bytes: int
    """Of the answer."""
    running: "asyncio.Task[None] | None" = None
    held_bytes: int = 0
    """Of memory, while it runs."""


@dataclass(eq=False, slots=True)
class _Account:
    """What one client address has in the line, and has used."""

    waiting: deque[_Job] = field(default_factory=deque)
    running: int = 0
    bytes: int = 0
    jobs: int = 0
    """Those that wait and those that run."""
    used_seconds: float = 0
    """On the clock of the line, which goes on with what is used (start-time fair queueing)."""


class Sandbox:
    """The processes, and the line before them. Made anywhere, used in one event loop."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._seconds = settings.decode_timeout_seconds
        self._patience = settings.inference_timeout_seconds
        self._most_processes = _most_processes(settings)
        self._most_jobs = settings.max_concurrent_requests
        self._most_line_bytes = _BODIES_IN_LINE * settings.max_body_bytes
        # Together they take no more memory than one of them may take for the largest image.
        self._working_bytes = self._free_bytes = _working_bytes(settings)
        self._process_bytes = _OWN_BYTES + _COPIES * settings.max_body_bytes + self._free_bytes
        self._asking: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._accounts: dict[str, _Account] = {}
        self._clock_seconds = 0.0
        self._jobs = 0
        self._line_bytes = 0
        self._idle: list[SandboxProcess] = []
        self._started = 0
        """Processes that are there or being started."""
        self._starting = 0
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaping: set[asyncio.Future[None]] = set()

    def start_soon(self) -> None:
        """Have a first process started before somebody needs it, but after the service itself."""
        loop = asyncio.get_running_loop()
        loop.call_later(_FIRST_START_SECONDS, self._start_first)

    async def close(self) -> None:
        """Kill every process, and answer whoever waits."""
        self._is_closed = True
        for account in self._accounts.values():
            for job in account.waiting:
                _fail(job, NotReadyError(_STOPPING))
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
        self, task: Task, body: bytes, client: str, most_bytes: int
    ) -> tuple[dict[str, Any], Bytes]:
        """Have a task done, in turn.

        client is the address of who asks, and most_bytes the longest answer that makes sense.

        Raises:
            OverloadedError: too much waits already. DeadlineError: it came to no turn in time.
            BodyTooCostlyError: it took too long or too much memory.
            DropserveError: about what is in the body.
        """
        loop = asyncio.get_running_loop()
        job = _Job(task, body, client, loop.create_future(), most_bytes)
        account = self._enter(job)
        timer = loop.call_later(self._patience, self._give_up, job)
        try:
            self._dispatch()
            content, data = await job.answer
        finally:
            timer.cancel()
            self._leave(job, account)
        _raise_error(content)
        return content, data

    def task(self, kind: Any, spec: InputSpec, limits: Limits, **more: Any) -> Task:
        """Describe a task."""
        return Task(kind, spec.model_dump(), limits, self._seconds, **more)

    def _enter(self, job: _Job) -> _Account:
        """Take a job into the line, or refuse it."""
        if self._is_closed:
            raise NotReadyError(_STOPPING)
        account = self._accounts.get(job.client) or _Account(used_seconds=self._clock_seconds)
        size = len(job.body)
        if (
            self._jobs >= self._most_jobs
            or self._line_bytes + size > self._most_line_bytes
            or account.jobs >= max(1, self._most_jobs // 2)
            or (account.jobs and account.bytes + size > self._most_line_bytes // 2)
        ):
            raise OverloadedError(
                "Too many large bodies are waiting to be read; try again in a second."
            )
        if not account.jobs:
            account.used_seconds = max(account.used_seconds, self._clock_seconds)
        self._accounts[job.client] = account
        self._jobs += 1
        self._line_bytes += size
        account.jobs += 1
        account.bytes += size
        account.waiting.append(job)
        return account

    def _leave(self, job: _Job, account: _Account) -> None:
        """Forget a job, answered or given up."""
        self._jobs -= 1
        self._line_bytes -= len(job.body)
        account.jobs -= 1
        account.bytes -= len(job.body)
        if job.running is not None:
            job.running.cancel()
        else:
            with suppress(ValueError):
                account.waiting.remove(job)
        if not account.jobs and len(self._accounts) > _MANY_ACCOUNTS:
            self._forget()

    def _forget(self) -> None:
        """Forget addresses that ask for nothing now, those that have used least first."""
        resting = [
            (each.used_seconds, client)
            for client, each in self._accounts.items()
            if not each.jobs and not each.running
        ]
        for used_seconds, client in sorted(resting):
            if used_seconds > self._clock_seconds and len(self._accounts) <= _MOST_ACCOUNTS:
                break
            del self._accounts[client]

    def _give_up(self, job: _Job) -> None:
        _fail(
            job,
            DeadlineError(
                f"No answer within {self._patience:g} seconds; try again later, with fewer or "
                "smaller images."
            ),
        )

    def _dispatch(self) -> None:
        """Give every idle process a job, and start one if there are more jobs."""
        while self._idle and (job := self._next()) is not None:
            self._run(job, self._idle.pop())
        waiting = sum(len(each.waiting) for each in self._accounts.values())
        if self._starting < waiting and self._next(take=False) is not None:
            self._start_one()

    def _next(self, *, take: bool = True) -> _Job | None:
        """Find the job whose turn it is: that of the address that has used least."""
        most = max(1, self._most_processes - 1)
        ready = [each for each in self._accounts.values() if each.waiting and each.running < most]
        if not ready:
            return None
        account = min(ready, key=lambda each: each.used_seconds)
        if not take:
            return account.waiting[0]
        self._clock_seconds = account.used_seconds
        return account.waiting.popleft()

    def _run(self, job: _Job, process: SandboxProcess) -> None:
        account = self._accounts[job.client]
        account.running += 1
        began = time.perf_counter()

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            account.running -= 1
            account.used_seconds += time.perf_counter() - began
            if not process.is_alive:
                account.used_seconds += _START_SECONDS
            self._let_go(job)
            if task.cancelled():
                _fail(job, NotReadyError(_STOPPING))
            if not self._is_closed:
                self._dispatch()

        job.running = self._begin(self._work(job, process))
        job.running.add_done_callback(ended)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        return task

    async def _work(self, job: _Job, process: SandboxProcess) -> None:
        """Let a process do a job, and end it if it does not in time."""
        is_fit = False
        try:
            async with asyncio.timeout(_BY_THE_CLOCK * self._seconds) as deadline:
                content, data = await self._exchange(job, process, deadline)
            is_fit = True
            if not job.answer.done():
                job.answer.set_result((content, data))
        except TimeoutError:
            self._too_costly(job, "takes too much time")
        except MemoryError:
            self._too_costly(job, "takes too much memory")
        except (OSError, ValueError):  # the process has ended, or it speaks nonsense
            took_long = await asyncio.to_thread(process.took_long)
            self._too_costly(job, f"takes too much {'time' if took_long else 'memory'}")
        finally:
            await self._put_back(process, is_fit=is_fit)

    async def _exchange(
        self, job: _Job, process: SandboxProcess, deadline: asyncio.Timeout
    ) -> tuple[dict[str, Any], Bytes]:
        await process.send(message(job.task, len(job.body)))
        await process.send(job.body)
        while True:
            content, data = await process.receive(job.most_bytes)
            if "needs" not in content:
                return content, data
            left = (deadline.when() or 0) - asyncio.get_running_loop().time()
            deadline.reschedule(None)  # it is others that it waits for
            await self._room(job, int(content["needs"]))
            deadline.reschedule(asyncio.get_running_loop().time() + left)
            await process.send(GO)

    def _too_costly(self, job: _Job, why: str) -> None:
        logger.warning("body too costly", client=job.client, bytes=len(job.body), why=why)
        _fail(
            job,
            BodyTooCostlyError(
                f"To read this body {why}; send fewer, smaller or more simply encoded images."
            ),
        )

    async def _room(self, job: _Job, needed: int) -> None:
        """Wait until so much memory is free, in turn; it is the job's until it asks again or ends.

        What it had before it gives back first: two that keep what the other waits for would wait
        for ever.
        """
        self._let_go(job)
        if needed > self._working_bytes:
            raise MemoryError
        if self._asking or needed > self._free_bytes:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = needed, turn
            self._asking.append(entry)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._free_bytes += needed
                else:
                    self._asking.remove(entry)
                self._grant()
                raise
        else:
            self._free_bytes -= needed
        job.held_bytes += needed

    def _let_go(self, job: _Job) -> None:
        self._free_bytes += job.held_bytes
        job.held_bytes = 0
        self._grant()

    def _grant(self) -> None:
        while self._asking and self._asking[0][0] <= self._free_bytes:
            needed, turn = self._asking.popleft()
            if not turn.done():
                self._free_bytes -= needed
                turn.set_result(None)

    async def _put_back(self, process: SandboxProcess, *, is_fit: bool) -> None:
        if is_fit and not self._is_closed:
            self._idle.append(process)
            return
        self._started -= 1
        process.kill()
        self._reaping.add(reaping := asyncio.ensure_future(asyncio.to_thread(process.reap)))
        reaping.add_done_callback(self._reaping.discard)
        await asyncio.shield(reaping)

    def _start_first(self) -> None:
        if not self._started and not self._is_closed:
            self._start_one()

    def _start_one(self) -> None:
        if self._started < self._most_processes:
            self._started += 1
            self._starting += 1
            task = self._begin(self._start())
            task.add_done_callback(self._tasks.discard)

    async def _start(self) -> None:
        """Start a process, and give it a job once it is ready."""
        starting = asyncio.ensure_future(
            asyncio.to_thread(SandboxProcess.start, self._process_bytes)
        )
        is_ready = False
        try:
            process = await asyncio.shield(starting)
            async with asyncio.timeout(_PATIENCE_AT_START_SECONDS):
                await process.receive(0)
            is_ready = True
        except (OSError, TimeoutError) as error:
            logger.error("sandbox process did not start", reason=str(error))  # noqa: TRY400
            self._fail_all()
        finally:
            self._starting -= 1
            try:
                process = await starting
            except OSError:  # there is none
                self._started -= 1
            else:
                await self._put_back(process, is_fit=is_ready)
        self._dispatch()

    def _fail_all(self) -> None:
        """Answer whoever waits: there is nobody who could read their bodies."""
        for account in self._accounts.values():
            for job in account.waiting:
                _fail(job, OverloadedError("Large bodies cannot be read now; try again later."))


def _fail(job: _Job, error: DropserveError) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


_ERRORS = {kind.__name__: kind for kind in STATUS_AND_CODE}


def _raise_error(content: dict[str, Any]) -> None:
    """Raise the error that an answer is, if it is one."""
    if "error" in content:
        raise _ERRORS[content["error"]](content["sentence"])
    if content.get("memory"):
        raise BodyTooCostlyError(
            "To read this body takes too much memory; send fewer, smaller or more simply encoded "
            "images."
        )
    if "failure" in content:
        raise RuntimeError(f"A sandbox process failed:\n{content['failure']}")


def _most_processes(settings: ServiceSettings) -> int:
    """By the processors of this worker; two at least, so that one address never has them all."""
    if settings.decode_processes is not None:
        return settings.decode_processes
    return min(_MANY_PROCESSES, max(2, processors() // settings.workers))


def _working_bytes(settings: ServiceSettings) -> int:
    """How much memory all bodies of this worker may come to at once."""
    largest = max(
        PEAK_BYTES_OF_A_PIXEL * settings.max_image_pixels, JSON_BYTES * settings.max_body_bytes
    )
    return min(largest, memory_bytes() // (2 * settings.workers))
