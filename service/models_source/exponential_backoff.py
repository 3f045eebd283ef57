"""How long to wait after one failure after another. Knows nothing that fails."""

import random


class Backoff:
    """Waits twice as long after each further failure, up to a limit."""

    def __init__(self, first_seconds: float, most_seconds: float) -> None:
        """Start without a failure."""
        self._first_seconds = min(first_seconds, most_seconds)
        self._most_seconds = most_seconds
        self._next_seconds = self._first_seconds

    def after_failure(self) -> float:
        """Return how long to wait now: half of the delay or more, at random, in seconds.

        By chance, so that many processes do not ask again at one moment (Brooker 2015).
        """
        delay = self._next_seconds
        self._next_seconds = min(2 * delay, self._most_seconds)
        return random.uniform(delay / 2, delay)  # noqa: S311 - no secret

    def reset(self) -> None:
        """Forget the failures."""
        self._next_seconds = self._first_seconds
