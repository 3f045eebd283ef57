"""Requests /health/live at fixed times, whether or not responses come: an open loop.

Each request has a new connection, and its wait runs from when it was due. A probe that waits for
the last response before it sends the next request sees one long stall once, however many requests
would have been due meanwhile ("coordinated omission").
"""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

from benchmarks.reliability.wire import Address, complete_length, request
from benchmarks.serving.open_loop import percentiles

PROBE_SECONDS = 0.05
"""From one request to the next."""
_MESSAGE = request("GET", "/health/live", None, "Connection: close")
_READ_BYTES = 65_536


@dataclass
class ProbeStats:
    """How long the requests of a probe have waited."""

    waits: list[float] = field(default_factory=list)
    """Seconds from when a request was due to its status 200; at least the timeout without one."""
    lateness: float = 0.0
    """By how many seconds the probe itself came too late to send at most: a part of the waits."""

    @property
    def p99(self) -> float:
        """99th percentile of the waits, milliseconds; NaN without any."""
        return percentiles(self.waits)["p99"]

    def __str__(self) -> str:
        """Format p50, p99 and maximum, milliseconds."""
        found = percentiles(self.waits)
        return " / ".join(f"{found[name]:,.0f}" for name in ("p50", "p99", "most"))


class HealthProbe:
    """Requests /health/live every PROBE_SECONDS until an event is set."""

    def __init__(
        self, address: Address, stats: ProbeStats, *, timeout: float, source: str | None = None
    ) -> None:
        """Prepare the probe; it connects when it runs.

        timeout: seconds after which a connection without a response is closed.
        source: the address to send from.
        """
        self._address, self._stats, self._timeout = address, stats, timeout
        self._origin = None if source is None else (source, 0)

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until the event is set; return when all have ended."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            for number in itertools.count():
                due = begun + number * PROBE_SECONDS
                if await _is_set_before(stop, due):
                    return
                self._stats.lateness = max(self._stats.lateness, time.monotonic() - due)
                requests.create_task(self._measure(due))

    async def _measure(self, due: float) -> None:
        is_good = await self._is_good_response()
        waited = time.monotonic() - due
        self._stats.waits.append(waited if is_good else max(waited, self._timeout))

    async def _is_good_response(self) -> bool:
        data = b""
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(
                    *self._address, local_addr=self._origin
                )
                try:
                    writer.write(_MESSAGE)
                    while not complete_length(data) and (piece := await reader.read(_READ_BYTES)):
                        data += piece
                finally:
                    writer.transport.abort()
        except OSError:  # TimeoutError among them
            return False
        return complete_length(data) > 0 and data.startswith(b"HTTP/1.1 200 ")


async def _is_set_before(event: asyncio.Event, due: float) -> bool:
    """Wait until an event is set or a time of `time.monotonic` has come; whether it is set."""
    try:
        async with asyncio.timeout(max(0.0, due - time.monotonic())):
            return await event.wait()
    except TimeoutError:
        return False
