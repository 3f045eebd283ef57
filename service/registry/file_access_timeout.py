"""Calls that read or write files, with a timeout. Knows no model."""

from collections.abc import Callable
from typing import TypeVar

from service.engine.daemon_threads import DaemonThreads
from service.errors import DeadlineError

_TIMEOUT_SECONDS = 10.0

T = TypeVar("T")


class Disk:
    """Runs file operations on daemon threads, since a failed disk can block them for ever."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._threads = DaemonThreads("disk")

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run `function(*arguments)` and return its result, or raise its error.

        Raises:
            DeadlineError: the disk does not answer in time.
            StoppingError: the service is stopping.
        """
        try:
            return await self._threads.call(_TIMEOUT_SECONDS, function, *arguments)
        except TimeoutError:
            raise DeadlineError(
                f"The disk has not answered within {_TIMEOUT_SECONDS:g} seconds; see to it, and "
                "try again."
            ) from None

    def stop(self) -> None:
        """Raise StoppingError in every current and later call."""
        self._threads.abandon()
