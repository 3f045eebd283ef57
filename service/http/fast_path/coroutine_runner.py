"""Runs a response's coroutine at once, and without an asyncio task where one wait is all it needs.

A task costs several microseconds and an iteration of the event loop. It knows no protocol.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from types import coroutine
from typing import Any

from starlette.responses import Response

Responding = Coroutine[Any, Any, Response]


class CoroutineRunner:
    """Runs one coroutine; it may wait for anything.

    A task runs it from its second wait on, or from its first one if that is not for a future. Until
    then it has no current task, so `asyncio.timeout` and task groups raise RuntimeError. uvicorn
    keeps a runner among its tasks, to cancel it.
    """

    __slots__ = ("_close", "_context", "_finish", "_responding", "_tasks", "_waits_for")

    def __init__(
        self,
        responding: Responding,
        finish: Callable[[Response], None],
        close: Callable[[], None],
        tasks: set[Any],
    ) -> None:
        """Take a coroutine that has not begun.

        finish: called with the response. close: called if there will be none because of an error
        that the coroutine raised. tasks: holds the runner, or its task, while the coroutine waits.
        """
        self._responding = responding
        self._finish = finish
        self._close = close
        self._tasks = tasks
        self._context = copy_context()
        self._waits_for: asyncio.Future[Any] | None = None

    def start(self) -> None:
        """Run to the first wait, or to the end."""
        waits_for = self._context.run(self._step)
        if waits_for is _ENDED:
            return
        if asyncio.isfuture(waits_for):
            _unset_blocking(waits_for)
            waits_for.add_done_callback(self._resume)
            self._waits_for = waits_for
            self._tasks.add(self)
        else:
            self._run_in_task(waits_for)

    def cancel(self, msg: str | None = None) -> None:
        """Cancel what the coroutine waits for."""
        if self._waits_for is not None:
            self._waits_for.cancel(msg)

    def _resume(self, _done: object) -> None:
        self._waits_for = None
        try:
            waits_for = self._context.run(self._step)
        finally:
            self._tasks.discard(self)
        if waits_for is not _ENDED:
            if asyncio.isfuture(waits_for):
                _unset_blocking(waits_for)
            self._run_in_task(waits_for)

    def _step(self) -> Any:
        """Run to the next wait; return what is awaited, or `_ENDED`."""
        try:
            try:
                return self._responding.send(None)
            except StopIteration as ended:
                self._finish(ended.value)
                return _ENDED
        except BaseException:
            self._close()
            raise

    def _run_in_task(self, waits_for: Any) -> None:
        rest = self._rest(waits_for)
        rest.send(None)  # begins it, so that cancelling the task at once cancels the coroutine too
        task = asyncio.get_running_loop().create_task(rest, context=self._context)
        self._waits_for = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _rest(self, waits_for: Any) -> None:
        try:
            self._finish(await _continue(self._responding, waits_for))
        except BaseException:
            self._close()
            raise


_ENDED = object()


def _unset_blocking(future: "asyncio.Future[Any]") -> None:
    """Do as a task does: until this is unset, nothing else can wait for the same future."""
    future._asyncio_future_blocking = False


@coroutine
def _continue(started: Responding, waits_for: Any) -> Generator[Any, Any, Response]:
    """Yield None once, then wait for `waits_for` and run the rest; return the response."""
    yielded = None
    while True:
        try:
            try:
                sent = yield yielded
            except BaseException as error:  # the future failed, or the task is cancelled
                yielded = waits_for = None  # else the error's traceback would refer to the error
                yielded = started.throw(error)
            else:
                if waits_for is not None:
                    yielded, waits_for = waits_for, None
                    yielded._asyncio_future_blocking = True
                else:
                    yielded = None
                    yielded = started.send(sent)
        except StopIteration as ended:
            response: Response = ended.value
            return response
