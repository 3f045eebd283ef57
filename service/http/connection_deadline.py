"""When the present state of a connection ends. Knows no connection and no HTTP."""

import asyncio
import math
from asyncio import TimerHandle
from collections.abc import Callable


class ConnectionDeadline:
    """A deadline that is moved with every request; it calls back once when it has passed.

    A timer that is due earlier is kept when the deadline moves, and looks again when it fires:
    setting one for each request would cost more.
    """

    __slots__ = ("_loop", "_on_passed", "_time", "_timer", "_timer_due_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_passed: Callable[[], None]) -> None:
        """Begin without a deadline."""
        self._loop, self._on_passed = loop, on_passed
        self._time: float | None = None
        """By the event loop's clock; None: there is no deadline."""
        self._timer: TimerHandle | None = None
        self._timer_due_at = math.inf

    def set(self, seconds: float) -> None:
        """Let the deadline pass in so many seconds."""
        self._time = time = self._loop.time() + seconds
        if time >= self._timer_due_at:
            return
        self._cancel_timer()
        self._start_timer(seconds)

    def clear(self) -> None:
        """Remove the deadline."""
        self._time = None

    def end(self) -> None:
        """Remove the deadline and its timer, for good; forget whom to call, who has this."""
        self.clear()
        self._cancel_timer()
        self._on_passed = _call_nobody

    def check(self) -> None:
        """Call back if the deadline has passed; the timer does this when it is due."""
        self._timer, self._timer_due_at = None, math.inf
        if self._time is None:
            return
        seconds_left = self._time - self._loop.time()
        if seconds_left > 0:
            self._start_timer(seconds_left)
        else:
            self._time = None
            self._on_passed()

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self.check)
        self._timer_due_at = self._timer.when()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _call_nobody() -> None:
    pass
