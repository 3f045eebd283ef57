"""As much of a task as an answer takes: one that has not to wait is there at once.

Knows no protocol, and only what futures are of asyncio.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from starlette.responses import Response

Responding = Coroutine[Any, None, Response]


class CoroutineRunner:
    """An answer on its way.

    asyncio has no current task meanwhile, which its time limits, and anyio, cannot do without: what
    is awaited here is a future.
    """

    def __init__(
        self,
        responding: Responding,
        finish: Callable[[Response], None],
        transport: asyncio.Transport,
    ) -> None:
        self._responding = responding
        self._finish = finish
        self._transport = transport
        self._context = copy_context()
        self._waits_for: asyncio.Future[object] | None = None
        self.when_done: Callable[[CoroutineRunner], None] | None = None

    def resume(self, _done: object = None) -> bool:
        """Go on to where it waits, or to the answer; tell whether that is written."""
        try:
            has_ended = self._context.run(self._step)
        except BaseException:  # nobody answers for it any more
            self._transport.close()
            self._end()
            raise
        if has_ended:
            self._end()
        return has_ended

    def _step(self) -> bool:
        try:
            waits_for = self._responding.send(None)
        except StopIteration as ended:
            self._finish(ended.value)
            return True
        waits_for._asyncio_future_blocking = False  # as a task says that it has understood
        waits_for.add_done_callback(self.resume)
        self._waits_for = waits_for
        return False

    def _end(self) -> None:
        if self.when_done is not None:
            self.when_done(self)

    def cancel(self, msg: str | None = None) -> None:
        """Let what it waits for be cancelled."""
        if self._waits_for is not None:
            self._waits_for.cancel(msg)
