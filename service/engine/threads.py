"""Calls that may never end, each with a deadline, on threads that nobody waits for.

A disk that has died, or a network file system whose server has, holds whoever asks for a file of it
for ever. An executor's threads are waited for when the process ends; these are not.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_STUCK = 8


class StoppingError(Exception):
    """The service is stopping: the call is not waited for."""


class DaemonThreads:
    """Starts a daemon thread a call; of calls that have missed their deadline it keeps few."""

    def __init__(self, name: str, first: Callable[[], None] | None = None) -> None:
        """Start nothing yet; each thread calls `first`, if given, before all else."""
        self._name = name
        self._first = first
        self._stuck = 0
        self._waiting: set[asyncio.Future[Any]] = set()
        self._stopped = False

    async def call(self, seconds: float, function: Callable[..., T], *arguments: object) -> T:
        """Call a function on a thread of its own and return what it returns, or raise that.

        Raises:
            TimeoutError: it has not ended after so many seconds, or too many have not.
            StoppingError: `abandon` was called.
        """
        if self._stopped:
            raise StoppingError
        if self._stuck >= _MOST_STUCK:
            raise TimeoutError
        running = _Call(self._name, self._first, partial(function, *arguments))
        self._waiting.add(running.answer)
        try:
            async with asyncio.timeout(seconds):
                answer: T = await running.answer
                return answer
        except TimeoutError:
            if running.answer.cancelled():  # by the deadline: the function itself may raise it
                self._stuck += 1
                running.when_late = self._one_is_back
            raise
        finally:
            self._waiting.discard(running.answer)

    def _one_is_back(self) -> None:
        self._stuck -= 1

    def abandon(self) -> None:
        """Let every call, and each to come, raise StoppingError at once."""
        self._stopped = True
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(StoppingError())


class _Call:
    """A call on a thread of its own; begins at once."""

    def __init__(
        self, name: str, first: Callable[[], None] | None, function: Callable[[], Any]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._first = first
        self._function = function
        self._context = contextvars.copy_context()
        self.answer: asyncio.Future[Any] = self._loop.create_future()
        self.when_late: Callable[[], None] | None = None
        """Called if it ends after all."""
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        result, error = None, None
        try:
            if self._first is not None:
                self._first()
            result = self._context.run(self._function)
        except BaseException as raised:  # it is raised where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._arrive, result, error)

    def _arrive(self, result: object, error: BaseException | None) -> None:
        if self.when_late is not None:
            self.when_late()
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)
