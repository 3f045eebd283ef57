"""Well-behaved clients: each sends its next request when the last is answered, and counts.

A request is accepted when the connection is open and the whole request was handed to the kernel. If
the connection is then reset or closed without a response, the request is lost. A refused connection
is not a loss, since its client tries again; neither is a kept-alive connection that the server
closes before the request was sent. After that it is, since no client can tell the difference.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.reliability.wire import Address, Response, complete_length, parse_responses

_READ_BYTES = 65_536
_RETRY_SECONDS = 0.02
REFUSED = "refused"
"""The outcome of a request that was not sent: no connection, or one that was closed before."""


@dataclass
class ClientStats:
    """Counts and latencies of the responses that clients got."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of requests by status, or by "lost: …", "late", "refused"; "sent" counts all."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, of the responses with status 200."""
    losses: list[float] = field(default_factory=list)
    """When lost requests were sent, seconds of `time.monotonic`."""

    @property
    def good(self) -> int:
        """The number of responses with status 200."""
        return self.counts["200"]

    @property
    def lost(self) -> int:
        """The number of requests that were accepted and never answered."""
        return sum(count for name, count in self.counts.items() if name.startswith("lost"))

    @property
    def worst(self) -> str:
        """The worst outcome: a loss is worse than a status, a high status worse than a low one."""
        names = [name for name in self.counts if name not in {REFUSED, "sent"}]
        return max(names, key=lambda name: (not name.isdecimal(), name), default="none")

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies, milliseconds; NaN if there are none."""
        ordered = sorted(self.latencies)
        if not ordered:
            return float("nan")
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """One client in a closed loop, which sends until an event is set."""

    def __init__(
        self,
        address: Address,
        messages: Sequence[bytes],
        stats: ClientStats,
        *,
        keep_alive: bool = True,
        source: str | None = None,
        every: float = 0.0,
        timeout: float = 60.0,
    ) -> None:
        """Prepare the client; it connects when it runs.

        messages: whole requests, sent in turn.
        source: the address to send from.
        every: seconds from one request to the next, if the response came in time; 0: at once.
        timeout: seconds after which a response counts as late and the connection is closed.
        """
        self._address, self._stats = address, stats
        self._messages = itertools.cycle(messages)
        self._keep_alive, self._every, self._timeout = keep_alive, every, timeout
        self._origin = None if source is None else (source, 0)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until the event is set."""
        due = time.monotonic()
        while not stop.is_set():
            await self._send_one()
            if self._every:
                due = max(due + self._every, time.monotonic() - self._every)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        self._close()

    async def _send_one(self) -> None:
        await self._exchange(next(self._messages))

    async def _exchange(self, message: bytes) -> tuple[str, Response | None]:
        """Send one request and count its outcome; return both that and the response."""
        counts = self._stats.counts
        started = time.monotonic()
        is_new = self._stream is None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await self._connected()
        except (OSError, TimeoutError):
            counts[REFUSED] += 1
            await asyncio.sleep(_RETRY_SECONDS)
            return REFUSED, None
        if not is_new and reader.at_eof():  # closed while it was idle: nothing was sent on it
            self._close()
            return REFUSED, None
        counts["sent"] += 1
        try:
            writer.write(message)
            async with asyncio.timeout(self._timeout):
                data = await self._read_response(reader)
        except TimeoutError:
            return self._record_loss("late", started)
        except OSError as error:
            return self._record_loss(f"lost: {type(error).__name__}", started)
        if not complete_length(data):
            return self._record_loss("lost: half a response" if data else "lost: closed", started)
        response = parse_responses(data)[-1]
        outcome = self._outcome(message, response)
        counts[outcome] += 1
        if response.status == 200:
            self._stats.latencies.append(time.monotonic() - started)
        if not self._keep_alive or b"connection: close" in response.head.lower():
            self._close()
        return outcome, response

    def _outcome(self, _message: bytes, response: Response) -> str:
        """Return the name under which a response is counted."""
        return str(response.status)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._stream is None:
            self._stream = await asyncio.open_connection(*self._address, local_addr=self._origin)
        return self._stream

    async def _read_response(self, reader: asyncio.StreamReader) -> bytes:
        data = b""
        while not complete_length(data):
            piece = await reader.read(_READ_BYTES)
            if not piece:
                return data
            data += piece
        return data

    def _record_loss(self, outcome: str, when: float) -> tuple[str, None]:
        self._stats.counts[outcome] += 1
        self._stats.losses.append(when)
        self._close()
        return outcome, None

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None


class Runs(Protocol):
    """A client of any kind."""

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until the event is set."""


async def load_while(clients: Sequence[Runs], action: Callable[[], Awaitable[object]]) -> None:
    """Run clients while an action is under way; return when both have ended."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.run(stop)) for each in clients]
    try:
        await action()
    finally:
        stop.set()
        await asyncio.gather(*tasks)
