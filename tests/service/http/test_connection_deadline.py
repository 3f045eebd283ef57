"""A deadline that moves: when it calls back, and how often it sets a timer."""

import asyncio
from collections.abc import Callable
from typing import Any

from service.http.connection_deadline import ConnectionDeadline


class Clock:
    """A loop whose time the test sets; timers fire in `advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        loop: Any = self
        timer = asyncio.TimerHandle(self.now + seconds, callback, (), loop)
        self.timers.append((timer, callback))
        return timer

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, _: asyncio.TimerHandle) -> None:
        pass

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [each for each in self.timers if each[0].when() <= self.now]
        self.timers = [each for each in self.timers if each not in due]
        for timer, callback in due:
            if not timer.cancelled():
                callback()


def made() -> tuple[Clock, ConnectionDeadline, list[float]]:
    clock: Any = Clock()
    passed: list[float] = []
    return clock, ConnectionDeadline(clock, lambda: passed.append(clock.now)), passed


def test_deadline_calls_back_once() -> None:
    clock, deadline, passed = made()
    deadline.set(2.0)
    clock.advance(1.9)
    assert passed == []
    clock.advance(0.1)
    clock.advance(9.0)
    assert passed == [2.0]


def test_deadline_that_moves_later_keeps_its_timer() -> None:
    clock, deadline, passed = made()
    deadline.set(2.0)
    for _ in range(5):
        clock.advance(0.1)
        deadline.set(2.0)
    assert len(clock.timers) == 1
    clock.advance(1.5)  # the timer is due, the deadline is not
    assert passed == []
    clock.advance(0.5)
    assert passed == [2.5]


def test_deadline_that_moves_earlier_sets_another_timer() -> None:
    clock, deadline, passed = made()
    deadline.set(9.0)
    deadline.set(1.0)
    clock.advance(1.0)
    assert passed == [1.0]
    clock.advance(9.0)
    assert passed == [1.0]


def test_deadline_that_is_cleared_or_ended_does_not_call_back() -> None:
    for stop in (ConnectionDeadline.clear, ConnectionDeadline.end):
        clock, deadline, passed = made()
        deadline.set(1.0)
        stop(deadline)
        clock.advance(2.0)
        assert passed == []
