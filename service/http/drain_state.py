"""Whether this process drains: it still answers, but clients shall go elsewhere. Knows no HTTP."""

from collections.abc import Callable

DRAINING_REASON = "The service is draining and ends soon; send requests to another."
"""Why a service that drains is not ready."""


class DrainState:
    """What the server sets at SIGTERM, and what connections and health checks read."""

    __slots__ = ("_report", "is_draining")

    def __init__(self, report: Callable[[], None] = lambda: None) -> None:
        """Begin with a service that does not drain.

        report: is called once in the event loop after draining has begun.
        """
        self._report = report
        self.is_draining = False

    def begin(self) -> None:
        """Drain from now on; a signal handler may call this, since it only sets a flag."""
        self.is_draining = True

    def report(self) -> None:
        """Report that draining has begun; for the event loop, since it may wait for a lock."""
        self._report()

    @property
    def not_ready_reason(self) -> str | None:
        """In one sentence why the service is not ready; None unless it drains."""
        return DRAINING_REASON if self.is_draining else None
