"""One attack at a time, from 127.0.0.2 on: what strangers send who want the service to stop.

    python -m benchmarks.reliability.attackers NAME --port 8000 --seconds 10

Each goes on, and renews itself, until the time is over. Bounded in connections and in bytes; sends
to loopback alone. Attackers run in a process of their own, apart from the clients that measure.
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

from benchmarks.reliability.bombs import Bomb, image_bombs, packed_bombs
from benchmarks.reliability.requests import infer, photo, predict
from benchmarks.reliability.wire import Address, request

READY = "attacking"
"""Written to the standard output when it begins."""

SWALLOWED = "MB taken behind a refusal"
LINGERED = "seconds that a connection lived behind a refusal"

_READ_BYTES = 65_536
_BUFFER_BYTES = 4096
_SOURCES = 8
"""Addresses that the attackers share: as many as a small botnet's."""
_GIGABYTES_BYTES = 2 * 2**30
_RENEW_SECONDS = 0.2


@dataclass(frozen=True)
class Scene:
    """Where an attack happens, and until when."""

    address: Address
    until: float
    """Seconds of `time.monotonic`."""
    most: dict[str, float] = field(default_factory=dict)
    """The most of what was noted, by what it is."""

    def note(self, what: str, amount: float) -> None:
        """Keep the largest amount."""
        self.most[what] = max(self.most.get(what, 0.0), amount)

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return time.monotonic() >= self.until

    async def rest(self, seconds: float) -> None:
        """Sleep, but not past the end."""
        await asyncio.sleep(max(0.0, min(seconds, self.until - time.monotonic())))

    async def connect(
        self, number: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect from one of the attackers' addresses; None where that is refused."""
        source = (f"127.0.0.{2 + number % _SOURCES}", 0)
        try:
            return await asyncio.open_connection(
                *self.address, local_addr=source, limit=_BUFFER_BYTES
            )
        except OSError:
            await self.rest(_RENEW_SECONDS)
            return None


Attack = Callable[[Scene], Awaitable[None]]


async def _many(scene: Scene, count: int, one: Callable[[Scene, int], Awaitable[None]]) -> None:
    """Let so many do the same, each anew when it ends."""

    async def again(number: int) -> None:
        while not scene.is_over:
            with suppress(OSError, RuntimeError):  # uvloop's, where the connection has closed
                await one(scene, number)
            await asyncio.sleep(0)

    await asyncio.gather(*(again(number) for number in range(count)))


def _sending(
    message: bytes, count: int, *, slowly: float = 0.0, each: int = 1
) -> Callable[[Scene], Awaitable[None]]:
    """Make an attack that sends a message and waits for the answer or the end.

    slowly: seconds between two parts of `each` bytes; 0: all at once.
    """

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        reader, writer = stream
        try:
            if not slowly:
                writer.write(message)
            for at in range(0, len(message) if slowly else 0, each):
                writer.write(message[at : at + each])
                await scene.rest(slowly)
                if scene.is_over or reader.at_eof() or writer.is_closing():
                    return
            await _until_closed(scene, reader)
        finally:
            writer.transport.abort()

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


async def _until_closed(scene: Scene, reader: asyncio.StreamReader) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, scene.until - time.monotonic())):
            while await reader.read(_READ_BYTES):
                pass


def _answered(messages: list[bytes], count: int) -> Attack:
    """Make an attack that sends the next message as soon as anything is answered."""

    async def attack(scene: Scene) -> None:
        turn = itertools.cycle(messages)

        async def one(scene: Scene, number: int) -> None:
            stream = await scene.connect(number)
            if stream is None:
                return
            reader, writer = stream
            try:
                while not scene.is_over:
                    writer.write(next(turn))
                    async with asyncio.timeout(max(0.01, scene.until - time.monotonic())):
                        if not await reader.read(_READ_BYTES):
                            return
            except TimeoutError:
                return
            finally:
                writer.transport.abort()

        await _many(scene, count, one)

    return attack


def _hung_up(message: bytes, count: int, seconds: float) -> Attack:
    """Make an attack that sends a message and hangs up a little later."""

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        stream[1].write(message)
        await scene.rest(seconds)
        stream[1].transport.abort()

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


def _never_reading(message: bytes, count: int, most_bytes: int) -> Attack:
    """Make an attack that sends messages without end and reads nothing."""
    block = message * max(1, _READ_BYTES // len(message))

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        reader, writer = stream
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            for _ in range(most_bytes // len(block)):
                writer.write(block)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, scene.until - time.monotonic())):
                        await writer.drain()
                if scene.is_over:
                    return
            await scene.rest(60)
        finally:
            writer.transport.abort()
            del reader

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


def _swallowing(message: bytes, count: int) -> Attack:
    """Make an attack that goes on sending a body which was refused, as fast as it is taken."""
    block = bytes(2**18)

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        writer = stream[1]
        sent = 0
        try:
            writer.write(message)
            while not scene.is_over and sent < _GIGABYTES_BYTES:
                writer.write(block)
                async with asyncio.timeout(max(0.01, scene.until - time.monotonic())):
                    await writer.drain()
                sent += len(block)
        except TimeoutError:
            return
        finally:
            scene.note(SWALLOWED, sent / 1e6)
            writer.transport.abort()

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


def _lingering(message: bytes, count: int) -> Attack:
    """Make an attack that goes on, a byte a second, when the time for its body is over."""

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        reader, writer = stream
        writer.write(message)
        answered = asyncio.create_task(reader.read(1))
        refused: float | None = None
        try:
            while not scene.is_over and not writer.is_closing() and not reader.at_eof():
                writer.write(b"1")
                await scene.rest(1)
                if answered.done() and refused is None:
                    refused = time.monotonic()
        finally:
            answered.cancel()
            if refused is not None:
                scene.note(LINGERED, time.monotonic() - refused)
            writer.transport.abort()

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


def _head(*lines: str) -> bytes:
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", *lines, "", ""]).encode()


_BODY_TO_COME = _head("Content-Type: application/json", "Content-Length: 10")
_LONG_BODY_TO_COME = _head("Content-Type: application/json", "Content-Length: 1000")
_TOO_LONG = _head("Content-Type: image/png", "Content-Length: 200000000000")
_LONG_NAMES = "&".join(f"n{i}=1" for i in range(7000))
_LONG_QUERY = request("POST", f"/predict?{_LONG_NAMES}", b"{}")
_GET = request("GET", "/v1/models")

_COSTLY = infer(samples=1024, images=64)
"""64 images of 1,024 samples: as much as one request may ask for."""


def attacks() -> dict[str, Callable[[], Attack]]:
    """Return every attack; one is made when it is called."""
    found: dict[str, Callable[[], Attack]] = {
        "slow heads": lambda: _sending(_BODY_TO_COME, 256, slowly=0.5, each=1),
        "256 heads without a body": lambda: _sending(_BODY_TO_COME, 256),
        "1024 heads without a body": lambda: _sending(_BODY_TO_COME, 1024),
        "slow bodies": lambda: _sending(predict(), 256, slowly=0.5, each=8),
        "pipelining without reading": lambda: _never_reading(_GET, 64, 2**20),
        "answers never read": lambda: _never_reading(request("GET", "/openapi.json"), 256, 2**18),
        "24 MB of pipelined GETs": lambda: _never_reading(_GET, 1, 24 * 2**20),
        "24 MB of GETs and reading": lambda: _flood(_GET, 1, 24 * 2**20),
        "costly requests and hanging up": lambda: _hung_up(_COSTLY, 32, 0.05),
        "costly requests": lambda: _answered([_COSTLY], 32),
        "long queries": lambda: _answered([_LONG_QUERY], 16),
        "1024 greedy retriers": lambda: _answered([infer(samples=64)], 1024),
        "silent connections": lambda: _sending(b"", 2000),
        "a byte a second behind 408": lambda: _lingering(_LONG_BODY_TO_COME, 128),
        "gigabytes behind 413": lambda: _swallowing(_TOO_LONG, 4),
        "photos by many": lambda: _answered([photo()], 64),
    }

    def thrown(bomb: Bomb, count: int) -> Callable[[], Attack]:
        return lambda: _answered([bomb()], count)

    found |= {name: thrown(bomb, 4) for name, bomb in image_bombs().items()}
    found |= {f"gzip: {name}": thrown(bomb, 20) for name, bomb in packed_bombs().items()}
    return found


def _flood(message: bytes, count: int, most_bytes: int) -> Attack:
    """Make an attack that sends messages without waiting, and reads what comes."""
    block = message * (_READ_BYTES // len(message))

    async def one(scene: Scene, number: int) -> None:
        stream = await scene.connect(number)
        if stream is None:
            return
        reader, writer = stream
        reading = asyncio.create_task(_until_closed(scene, reader))
        try:
            for _ in range(most_bytes // len(block)):
                writer.write(block)
                async with asyncio.timeout(max(0.01, scene.until - time.monotonic())):
                    await writer.drain()
            await reading
        except TimeoutError:
            return
        finally:
            reading.cancel()
            writer.transport.abort()

    async def attack(scene: Scene) -> None:
        await _many(scene, count, one)

    return attack


def main(arguments: list[str]) -> None:
    """Attack for a while."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=sorted(attacks()))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = attacks()[options.name]()

    async def attack() -> dict[str, float]:
        scene = Scene(("127.0.0.1", options.port), time.monotonic() + options.seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(options.seconds + 2):
                await chosen(scene)
        return scene.most

    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdout.write(orjson.dumps(uvloop.run(attack())).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
