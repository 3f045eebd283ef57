"""How much of the processor's time a comparison may take. Knows no version and no request."""

import asyncio
import time
from collections.abc import Callable

Clock = Callable[[], float]

_FREE_SHARE, _BUSY_SHARE = 0.2, 0.005
"""The share of one processor that runs take at most, where there is room and where there is none.
A share below a hundredth is too rare to show in the 99th percentile of what clients wait."""
_MOST_REST_SECONDS = 5.0
"""The longest rest: so often an image is compared also where the processor has no time at all."""
_BUSY_FROM = 0.5
"""There is no room where the process uses this share of the processors that it may use."""
_WINDOW_SECONDS = 0.1
_LATE_SECONDS = 0.005
"""Nor is there room where the event loop wakes up this late, as requests would be answered late."""


class SpareTime:
    """Tells for how long to rest after each run."""

    def __init__(
        self,
        processors: float,
        clock: Clock = time.perf_counter,
        processor_clock: Clock = time.process_time,
    ) -> None:
        """Begin to measure.

        processors: how many this process may use, of those that it shares with other workers.
        processor_clock: the processor time of this process, seconds.
        """
        self._clock, self._processor_clock = clock, processor_clock
        self._busy_from = _BUSY_FROM * min(1.0, processors)
        self._began, self._used_before = clock(), processor_clock()
        self._own_seconds = 0.0
        self._uses_much = False
        self._late_seconds = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether there is no room."""
        return self._uses_much or self._late_seconds > _LATE_SECONDS

    async def rest(self, run_seconds: float, least_seconds: float = 0.0) -> None:
        """Rest after a run of so many seconds."""
        seconds = max(self.rest_seconds(run_seconds), least_seconds)
        began = self._clock()
        await asyncio.sleep(seconds)
        self._late_seconds = self._clock() - began - seconds

    def rest_seconds(self, run_seconds: float) -> float:
        """Return how long to rest after a run of so many seconds."""
        self._own_seconds += run_seconds
        seconds = self._clock() - self._began
        if seconds >= _WINDOW_SECONDS:
            used = self._processor_clock()
            self._uses_much = (
                used - self._used_before - self._own_seconds > self._busy_from * seconds
            )
            self._began, self._used_before, self._own_seconds = self._began + seconds, used, 0.0
        share = _BUSY_SHARE if self.is_busy else _FREE_SHARE
        return min(run_seconds * (1 / share - 1), _MOST_REST_SECONDS)
