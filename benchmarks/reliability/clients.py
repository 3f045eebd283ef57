"""Clients that behave: each sends the next request when the last is answered, and counts.

What an accepted request is: the connection stood and the whole request was handed to the kernel.
One that is then reset or closed without an answer is lost; a connection that is refused is not, for
its client tries again. A kept-alive connection that the server closes before the request was sent
is not lost either; afterwards it is, since no client can tell.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.reliability.wire import Address, answers, complete

_READ_BYTES = 65_536
_RETRY_SECONDS = 0.02


@dataclass
class Seen:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    """By status, or "lost: …", "late", "refused"."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, of answers 200."""
    losses: list[float] = field(default_factory=list)
    """When a request was lost, seconds of `time.monotonic`."""

    @property
    def good(self) -> int:
        """Answers of status 200."""
        return self.counts["200"]

    @property
    def lost(self) -> int:
        """Requests that were accepted and never answered."""
        return sum(count for name, count in self.counts.items() if name.startswith("lost"))

    @property
    def worst(self) -> str:
        """The worst that was seen: a loss before a status, a high status before a low one."""
        names = [name for name in self.counts if name not in {"refused", "sent"}]
        return max(names, key=lambda name: (not name.isdecimal(), name), default="none")

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies, milliseconds; NaN of none."""
        ordered = sorted(self.latencies)
        if not ordered:
            return float("nan")
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """One client, in a loop that is closed, until it is told to stop."""

    def __init__(
        self,
        address: Address,
        messages: Sequence[bytes],
        seen: Seen,
        *,
        keep_alive: bool = True,
        source: str | None = None,
        every: float = 0.0,
        timeout: float = 60.0,
    ) -> None:
        """Prepare it.

        messages: whole requests, sent in turn.
        source: the address to send from.
        every: seconds from one request to the next, if the answer came in time; 0: at once.
        timeout: seconds after which an answer counts as late and the connection is closed.
        """
        self._address, self._seen = address, seen
        self._messages = itertools.cycle(messages)
        self._keep_alive, self._every, self._timeout = keep_alive, every, timeout
        self._origin = None if source is None else (source, 0)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, is_over: asyncio.Event) -> None:
        """Send until it is over."""
        due = time.monotonic()
        while not is_over.is_set():
            await self._once()
            if self._every:
                due = max(due + self._every, time.monotonic() - self._every)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        self._close()

    async def _once(self) -> None:
        counts = self._seen.counts
        begun = time.monotonic()
        is_fresh = self._stream is None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await self._connected()
        except (OSError, TimeoutError):
            counts["refused"] += 1
            await asyncio.sleep(_RETRY_SECONDS)
            return
        if not is_fresh and reader.at_eof():  # closed while it was idle: nothing was sent on it
            self._close()
            return
        counts["sent"] += 1
        try:
            writer.write(next(self._messages))
            async with asyncio.timeout(self._timeout):
                data = await self._answer(reader)
        except TimeoutError:
            self._lose("late", begun)
            return
        except OSError as error:
            self._lose(f"lost: {type(error).__name__}", begun)
            return
        if not complete(data):
            self._lose("lost: half an answer" if data else "lost: closed", begun)
            return
        answer = answers(data)[-1]
        counts[str(answer.status)] += 1
        if answer.status == 200:
            self._seen.latencies.append(time.monotonic() - begun)
        if not self._keep_alive or b"connection: close" in answer.head.lower():
            self._close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._stream is None:
            self._stream = await asyncio.open_connection(*self._address, local_addr=self._origin)
        return self._stream

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        data = b""
        while not complete(data):
            piece = await reader.read(_READ_BYTES)
            if not piece:
                return data
            data += piece
        return data

    def _lose(self, how: str, when: float) -> None:
        self._seen.counts[how] += 1
        self._seen.losses.append(when)
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None


async def load_while(clients: Sequence[Client], happening: Callable[[], Awaitable[None]]) -> None:
    """Let clients send for as long as something happens."""
    is_over = asyncio.Event()
    running = [asyncio.create_task(each.run(is_over)) for each in clients]
    try:
        await happening()
    finally:
        is_over.set()
        await asyncio.gather(*running)
