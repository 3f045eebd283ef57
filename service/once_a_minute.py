"""Limits how often a fault that lasts is logged. Knows no log."""

import math
import time
from collections.abc import Callable

_SECONDS = 60.0


class OnceAMinute:
    """What is logged at first, and then at most once a minute. One thread at a time may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: returns seconds."""
        self._clock = clock
        self._next = -math.inf

    def may_log(self) -> bool:
        """Return whether to log now; if so, not again within a minute."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + _SECONDS
        return True
