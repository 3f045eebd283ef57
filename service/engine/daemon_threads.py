"""Calls with a timeout, on daemon threads.

A read from a failed disk, or from a network file system whose server is gone, can block for ever.
The interpreter joins an executor's threads before it exits; it does not join daemon threads.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.errors import StoppingError

T = TypeVar("T")

_MAX_STUCK_THREADS = 8


class DaemonThreads:
    """Runs each call on a new daemon thread, with a bound on the threads that are stuck."""

    def __init__(self, name: str, initializer: Callable[[], None] | None = None) -> None:
        """Start no thread yet.

        name: of the threads.
        initializer: called first on each thread.
        """
        self._name = name
        self._initializer = initializer
        self._late: set[threading.Thread] = set()
        """Those whose call had its timeout, until it is seen that they have ended."""
        self._futures: set[asyncio.Future[Any]] = set()
        self._stopped = False

    async def call(self, seconds: float, function: Callable[..., T], *arguments: object) -> T:
        """Run `function(*arguments)` on a new thread and return its result, or raise its error.

        Raises:
            TimeoutError: it has not ended after `seconds`, or too many threads are stuck.
            StoppingError: `abandon` was called.
        """
        if self._stopped:
            raise StoppingError
        self._late = {thread for thread in self._late if thread.is_alive()}
        if len(self._late) >= _MAX_STUCK_THREADS:
            raise TimeoutError
        call = _Call(self._name, self._initializer, partial(function, *arguments))
        self._futures.add(call.future)
        try:
            async with asyncio.timeout(seconds):
                result: T = await call.future
                return result
        except TimeoutError:
            if call.future.cancelled():  # else the function itself raised TimeoutError
                self._late.add(call.thread)
            raise
        finally:
            self._futures.discard(call.future)

    def abandon(self) -> None:
        """Raise StoppingError in every current and later call."""
        self._stopped = True
        for future in self._futures:
            if not future.done():
                future.set_exception(StoppingError())


class _Call:
    """A call on a new thread, which starts at once."""

    def __init__(
        self, name: str, initializer: Callable[[], None] | None, function: Callable[[], Any]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._initializer = initializer
        self._function = function
        self._context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = self._loop.create_future()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        result, error = None, None
        try:
            if self._initializer is not None:
                self._initializer()
            result = self._context.run(self._function)
        except BaseException as raised:  # raised where the call is awaited
            error = raised
        with suppress(RuntimeError):  # the event loop is closed already
            self._loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: object, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
