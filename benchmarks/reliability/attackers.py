"""Run one denial-of-service attack on loopback, from the addresses 127.0.0.2 to 127.0.0.9.

    python -m benchmarks.reliability.attackers NAME --port 8000 --seconds 10

Each attack repeats until the time is over. It is bounded in connections and in bytes and sends to
loopback alone. Attackers run in a process of their own, apart from the clients that measure.
"""

import argparse
import asyncio
import itertools
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
import uvloop

from benchmarks.reliability.bombs import Bomb, gzip_bombs, image_bombs
from benchmarks.reliability.requests import infer, photo, predict
from benchmarks.reliability.wire import Address, request

READY = "attacking"
"""Printed when the attack begins."""

SENT_AFTER_REFUSAL = "MB accepted after a refusal"
OPEN_AFTER_REFUSAL = "seconds that a connection stayed open after a refusal"

_READ_BYTES = 65_536
_BUFFER_BYTES = 4096
_SOURCES = 8
"""Number of source addresses that the attackers use."""
_MAX_REFUSED_BYTES = 2 * 2**30
_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class AttackContext:
    """The address under attack, the end of the attack, and its measurements."""

    address: Address
    end: float
    """Seconds of `time.monotonic`."""
    peaks: dict[str, float] = field(default_factory=dict)
    """The largest value of each measurement, by name."""

    def record(self, name: str, value: float) -> None:
        """Keep the largest value of a measurement."""
        self.peaks[name] = max(self.peaks.get(name, 0.0), value)

    @property
    def is_over(self) -> bool:
        """Whether the attack has to stop."""
        return time.monotonic() >= self.end

    async def sleep(self, seconds: float) -> None:
        """Sleep, at most until the end of the attack."""
        await asyncio.sleep(max(0.0, min(seconds, self.end - time.monotonic())))

    async def connect(
        self, number: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect from one of the attackers' addresses; None if the connection is refused."""
        source = (f"127.0.0.{2 + number % _SOURCES}", 0)
        try:
            return await asyncio.open_connection(
                *self.address, local_addr=source, limit=_BUFFER_BYTES
            )
        except OSError:
            await self.sleep(_RETRY_SECONDS)
            return None


Attack = Callable[[AttackContext], Awaitable[None]]


def _repeat(attacker: Callable[[AttackContext, int], Awaitable[None]], count: int) -> Attack:
    """Make an attack of `count` copies of an attacker, each started again when it ends."""

    async def repeat(context: AttackContext, number: int) -> None:
        while not context.is_over:
            with suppress(OSError, RuntimeError):  # uvloop's, where the connection has closed
                await attacker(context, number)
            await asyncio.sleep(0)

    async def attack(context: AttackContext) -> None:
        await asyncio.gather(*(repeat(context, number) for number in range(count)))

    return attack


def _send_and_wait(
    message: bytes, count: int, *, interval: float = 0.0, piece_bytes: int = 1
) -> Attack:
    """Make an attack that sends a message and waits until the connection is closed or the end.

    interval: seconds between two pieces of `piece_bytes`; 0: all at once.
    """

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        reader, writer = stream
        try:
            if not interval:
                writer.write(message)
            for at in range(0, len(message) if interval else 0, piece_bytes):
                writer.write(message[at : at + piece_bytes])
                await context.sleep(interval)
                if context.is_over or reader.at_eof() or writer.is_closing():
                    return
            await _until_closed(context, reader)
        finally:
            writer.transport.abort()

    return _repeat(attacker, count)


async def _until_closed(context: AttackContext, reader: asyncio.StreamReader) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, context.end - time.monotonic())):
            while await reader.read(_READ_BYTES):
                pass


def _closed_loop(messages: list[bytes], count: int) -> Attack:
    """Make an attack in which each connection sends the next message after any response."""
    cycle = itertools.cycle(messages)

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        reader, writer = stream
        try:
            while not context.is_over:
                writer.write(next(cycle))
                async with asyncio.timeout(max(0.01, context.end - time.monotonic())):
                    if not await reader.read(_READ_BYTES):
                        return
        except TimeoutError:
            return
        finally:
            writer.transport.abort()

    return _repeat(attacker, count)


def _hang_up(message: bytes, count: int, seconds: float) -> Attack:
    """Make an attack that sends a message and hangs up a little later."""

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        stream[1].write(message)
        await context.sleep(seconds)
        stream[1].transport.abort()

    return _repeat(attacker, count)


def _send_without_reading(message: bytes, count: int, max_bytes: int) -> Attack:
    """Make an attack that sends messages endlessly and reads nothing."""
    chunk = message * max(1, _READ_BYTES // len(message))

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        reader, writer = stream
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            for _ in range(max_bytes // len(chunk)):
                writer.write(chunk)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, context.end - time.monotonic())):
                        await writer.drain()
                if context.is_over:
                    return
            await context.sleep(60)
        finally:
            writer.transport.abort()
            del reader

    return _repeat(attacker, count)


def _send_after_refusal(message: bytes, count: int) -> Attack:
    """Make an attack that keeps sending a body which was refused, as fast as it is accepted."""
    chunk = bytes(2**18)

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        writer = stream[1]
        sent = 0
        try:
            writer.write(message)
            while not context.is_over and sent < _MAX_REFUSED_BYTES:
                writer.write(chunk)
                async with asyncio.timeout(max(0.01, context.end - time.monotonic())):
                    await writer.drain()
                sent += len(chunk)
        except TimeoutError:
            return
        finally:
            context.record(SENT_AFTER_REFUSAL, sent / 1e6)
            writer.transport.abort()

    return _repeat(attacker, count)


def _linger_after_timeout(message: bytes, count: int) -> Attack:
    """Make an attack that keeps sending a byte a second after the body timeout."""

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        reader, writer = stream
        writer.write(message)
        answered = asyncio.create_task(reader.read(1))
        refused: float | None = None
        try:
            while not context.is_over and not writer.is_closing() and not reader.at_eof():
                writer.write(b"1")
                await context.sleep(1)
                if answered.done() and refused is None:
                    refused = time.monotonic()
        finally:
            answered.cancel()
            if refused is not None:
                context.record(OPEN_AFTER_REFUSAL, time.monotonic() - refused)
            writer.transport.abort()

    return _repeat(attacker, count)


def _head(*lines: str) -> bytes:
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", *lines, "", ""]).encode()


_BODY_TO_COME = _head("Content-Type: application/json", "Content-Length: 10")
_LONG_BODY_TO_COME = _head("Content-Type: application/json", "Content-Length: 1000")
_TOO_LONG = _head("Content-Type: image/png", "Content-Length: 200000000000")
_LONG_NAMES = "&".join(f"n{i}=1" for i in range(7000))
_LONG_QUERY = request("POST", f"/predict?{_LONG_NAMES}", b"{}")
_GET = request("GET", "/v1/models")

_COSTLY = infer(samples=1024, images=64)
"""64 images with 1,024 samples each: the most that one request may ask for."""


def attacks() -> dict[str, Callable[[], Attack]]:
    """Return a factory for every attack, by name."""
    found: dict[str, Callable[[], Attack]] = {
        "slow heads": lambda: _send_and_wait(_BODY_TO_COME, 256, interval=0.5, piece_bytes=1),
        "256 heads without a body": lambda: _send_and_wait(_BODY_TO_COME, 256),
        "1024 heads without a body": lambda: _send_and_wait(_BODY_TO_COME, 1024),
        "slow bodies": lambda: _send_and_wait(predict(), 256, interval=0.5, piece_bytes=8),
        "pipelining without reading": lambda: _send_without_reading(_GET, 64, 2**20),
        "answers never read": lambda: _send_without_reading(
            request("GET", "/openapi.json"), 256, 2**18
        ),
        "24 MB of pipelined GETs": lambda: _send_without_reading(_GET, 1, 24 * 2**20),
        "24 MB of GETs and reading": lambda: _flood(_GET, 1, 24 * 2**20),
        "costly requests and hanging up": lambda: _hang_up(_COSTLY, 32, 0.05),
        "costly requests": lambda: _closed_loop([_COSTLY], 32),
        "long queries": lambda: _closed_loop([_LONG_QUERY], 16),
        "1024 greedy retriers": lambda: _closed_loop([infer(samples=64)], 1024),
        "silent connections": lambda: _send_and_wait(b"", 2000),
        "a byte a second behind 408": lambda: _linger_after_timeout(_LONG_BODY_TO_COME, 128),
        "gigabytes behind 413": lambda: _send_after_refusal(_TOO_LONG, 4),
        "photos by many": lambda: _closed_loop([photo()], 64),
    }

    def send_bomb(bomb: Bomb, count: int) -> Callable[[], Attack]:
        return lambda: _closed_loop([bomb()], count)

    found |= {name: send_bomb(bomb, 4) for name, bomb in image_bombs().items()}
    found |= {f"gzip: {name}": send_bomb(bomb, 20) for name, bomb in gzip_bombs().items()}
    return found


def _flood(message: bytes, count: int, max_bytes: int) -> Attack:
    """Make an attack that sends messages without waiting, and reads the responses."""
    chunk = message * (_READ_BYTES // len(message))

    async def attacker(context: AttackContext, number: int) -> None:
        stream = await context.connect(number)
        if stream is None:
            return
        reader, writer = stream
        reading = asyncio.create_task(_until_closed(context, reader))
        try:
            for _ in range(max_bytes // len(chunk)):
                writer.write(chunk)
                async with asyncio.timeout(max(0.01, context.end - time.monotonic())):
                    await writer.drain()
            await reading
        except TimeoutError:
            return
        finally:
            reading.cancel()
            writer.transport.abort()

    return _repeat(attacker, count)


def main(arguments: list[str]) -> None:
    """Run the chosen attack; print the peaks of its measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=sorted(attacks()))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = attacks()[options.name]()

    async def attack() -> dict[str, float]:
        context = AttackContext(("127.0.0.1", options.port), time.monotonic() + options.seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(options.seconds + 2):
                await chosen(context)
        return context.peaks

    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdout.write(orjson.dumps(uvloop.run(attack())).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
