"""A million fuzzed requests: does one bring the service down, or get another's answer?

    python -m benchmarks.reliability.fuzz [--quick] [--record]

Over many connections at once: requests that are odd in all but where they end, pipelined in one or
several pieces, with good ones between, whose answers are known; good ones followed by one whose
head or framing is broken; and clients that hang up. Every answer must name the request that it
answers, a good request must get its own answer, and no answer may be a server's error but 503 and
504, or 501 and 505, which RFC 9110 has for what a server does not speak. Memory is weighed each
second, and its slope taken over the last two thirds.
"""

import asyncio
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import numpy as np
import uvloop

from benchmarks.reliability.fuzz_requests import (
    Fuzzer,
    as_expected,
    good_bodies,
    good_request,
)
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Bar, Report
from benchmarks.reliability.services import Service
from benchmarks.reliability.wire import Address, answers, ask, complete

_REQUESTS, _QUICK_REQUESTS = 1_000_000, 20_000
_CONNECTIONS = 64
_PIPELINED = 12
_BATCHES_PER_CONNECTION = 50
_PATIENCE_SECONDS = 20.0
_LAST_WORDS_SECONDS = 0.05
_ALLOWED = {501, 503, 504, 505}
_SHOWN_TRACEBACKS = 5
_MOST_MB = 1.0
"""Of growth in 100,000 requests."""
_READ_BYTES = 65_536


def measure(options: Options) -> Report:
    """Fuzz, and watch."""
    total = _QUICK_REQUESTS if options.quick else _REQUESTS
    quiet = ("--log-level", "warning")
    with Service(
        options.folder("service"),
        options.models_folder,
        options.port,
        *quiet,
        cores=options.service_cores,
    ) as service:
        expected = _learn(service.address)
        begun = time.monotonic()
        counts, weights = _fuzz(options, service, total, expected)
        seconds = time.monotonic() - begun
        is_alive = service.server.status is None and service.is_ready()
        errors = [each for each in service.log().splitlines() if "Traceback" in each]
        sys.stderr.writelines(f"{line}\n" for line in errors[:_SHOWN_TRACEBACKS])
        still = _learn(service.address) == expected if is_alive else False
    return _report(options, counts, weights, seconds, len(errors), is_well=is_alive and still)


def _learn(address: Address) -> list[bytes]:
    """Return what each good request is answered with."""
    found = []
    for body in good_bodies():
        answer = ask(address, good_request(body, "to-learn"))
        assert answer is not None, "the service does not answer a good request"
        assert answer.status == 200, answer
        found.append(as_expected(answer.body, "to-learn"))
    assert len(set(found)) == len(found), "good requests must be told apart by their answers"
    return found


def _fuzz(
    options: Options, service: Service, total: int, expected: list[bytes]
) -> tuple[Counter[str], list[tuple[float, float]]]:
    """Return what was counted, and (seconds, MB) of the service."""
    processes = len(os.sched_getaffinity(0))
    shares = [total // processes] * processes
    weights = []
    begun = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        work: list[Future[Counter[str]]] = [
            pool.submit(_share, service.address, share, seed, expected)
            for seed, share in enumerate(shares)
        ]
        while not all(each.done() for each in work):
            weights.append((time.monotonic() - begun, service.server.proportional_memory()))
            time.sleep(1)
        return sum((each.result() for each in work), Counter[str]()), weights


def _share(address: Address, total: int, seed: int, expected: list[bytes]) -> Counter[str]:
    return uvloop.run(_Share(address, total, seed, expected).run())


class _Share:
    """What one process sends."""

    def __init__(self, address: Address, total: int, seed: int, expected: list[bytes]) -> None:
        self._address, self._left, self._expected = address, total, expected
        self._seed = seed
        self._bodies = good_bodies()
        self._random = random.Random(seed)  # noqa: S311
        self._fuzzer = Fuzzer(seed)
        self._number = 0
        self.counts: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        await asyncio.gather(*(self._connect() for _ in range(_CONNECTIONS)))
        return self.counts

    async def _connect(self) -> None:
        while self._left > 0:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError as error:
                self.counts[f"not connected: {type(error).__name__}"] += 1
                self._left -= 1  # or else a service that has ended would be tried for ever
                await asyncio.sleep(0.05)
                continue
            try:
                for _ in range(_BATCHES_PER_CONNECTION):
                    if self._left <= 0 or not await self._batch(reader, writer):
                        break
            except OSError:
                self.counts["resets"] += 1
            finally:
                writer.transport.abort()

    async def _batch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send some requests; return whether the connection goes on."""
        draw = self._random.random()
        if draw < 0.75:
            return await self._pipelined(reader, writer)
        if draw < 0.95:
            await self._broken(reader, writer)
        else:
            await self._hung_up(writer)
        return False

    async def _pipelined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fuzzed = self._random.randrange(1, _PIPELINED)
        ids, good, message = [], {}, b""
        for index in range(fuzzed + 1):
            request_id = self._next_id()
            ids.append(request_id)
            is_good = index == fuzzed or self._random.random() < 0.05
            if is_good:
                good[request_id] = self._random.randrange(len(self._bodies))
                message += good_request(self._bodies[good[request_id]], request_id)
            else:
                message += self._fuzzer.framed(request_id)
        self._sent(len(ids))
        await self._write(writer, message)
        return await self._read(reader, ids, good)

    async def _write(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        """Send a message in pieces, as far as the service takes it."""
        for piece in self._fuzzer.pieces(message):
            if writer.is_closing():
                return
            writer.write(piece)
            await asyncio.sleep(0)

    async def _read(
        self, reader: asyncio.StreamReader, ids: Sequence[str], good: dict[str, int]
    ) -> bool:
        """Read an answer for each; return whether all came."""
        data = b""
        for position, request_id in enumerate(ids):
            while not (size := complete(data)):
                try:
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        piece = await reader.read(_READ_BYTES)
                except TimeoutError:
                    self.counts["never answered"] += 1
                    return False
                if not piece:
                    # It may close behind an error, not behind a good request.
                    if position and ids[position - 1] in good:
                        self.counts["closed behind a good request"] += 1
                    return False
                data += piece
            self._judge(data[:size], request_id, good)
            data = data[size:]
        if data:
            self.counts["more answers than requests"] += 1
            return False
        return True

    def _judge(self, data: bytes, request_id: str, good: dict[str, int]) -> None:
        answer = answers(data)[-1]
        self._count(answer.status)
        if answer.request_id.startswith("fuzz-") and answer.request_id != request_id:
            self.counts["answers to another request"] += 1
        if request_id not in good or answer.status in _ALLOWED:
            return
        is_right = answer.status == 200 and answer.request_id == request_id
        right = self._expected[good[request_id]]
        if not is_right or as_expected(answer.body, request_id) != right:
            self.counts["good requests answered wrongly"] += 1
            how = f"{answer.status}, {'with' if answer.request_id == request_id else 'without'}"
            self.counts[f"wrong: {how} its id"] += 1

    async def _broken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send a good request and a broken one behind it."""
        good, other = self._next_id(), self._next_id()
        which = self._random.randrange(len(self._bodies))
        self._sent(2)
        message = good_request(self._bodies[which], good) + self._fuzzer.broken(other)
        await self._write(writer, message)
        data = b""
        while not (size := complete(data)):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    piece = await reader.read(_READ_BYTES)
            except TimeoutError:
                piece = b""
            if not piece:
                self.counts["good requests without an answer"] += 1
                return
            data += piece
        self._judge(data[:size], good, {good: which})
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                data = data[size:] + await reader.read(_READ_BYTES)
                for answer in answers(data):
                    self._count(answer.status)
                    if answer.request_id == good:
                        self.counts["answers to another request"] += 1

    async def _hung_up(self, writer: asyncio.StreamWriter) -> None:
        self._sent(1)
        message = self._fuzzer.framed(self._next_id())
        await self._write(writer, self._fuzzer.cut(message))

    def _count(self, status: int) -> None:
        self.counts[f"status {status}"] += 1
        if status >= 500 and status not in _ALLOWED:
            self.counts["server errors"] += 1

    def _sent(self, count: int) -> None:
        self._left -= count
        self.counts["requests"] += count

    def _next_id(self) -> str:
        """Make an id that no change of a few bits makes another's: heads are fuzzed, too."""
        self._number += 1
        digest = hashlib.blake2b(f"{self._seed} {self._number}".encode(), digest_size=8)
        return f"fuzz-{digest.hexdigest()}-"


def _report(
    options: Options,
    counts: Counter[str],
    weights: list[tuple[float, float]],
    seconds: float,
    tracebacks: int,
    *,
    is_well: bool,
) -> Report:
    sent = counts["requests"]
    slope, memory = _slope(weights, sent / seconds)
    none = (
        "server errors",
        "answers to another request",
        "good requests answered wrongly",
        "good requests without an answer",
        "closed behind a good request",
        "more answers than requests",
        "never answered",
    )
    bars = [
        Bar("crashes", "none" if is_well else "it is down, or not as it was", "none", is_well),
        Bar("tracebacks in the log", f"{tracebacks}", "0", tracebacks == 0),
        *(Bar(each, f"{counts[each]:,}", "0", counts[each] == 0) for each in none),
    ]
    if not options.quick:
        told = f"{slope:.2f} MB in 100,000 requests"
        bars.append(Bar("memory's slope", told, f"at most {_MOST_MB:g}", slope <= _MOST_MB))
    rows = [(name, f"{count:,}") for name, count in sorted(counts.items()) if name not in none]
    rows += [("requests a second", f"{sent / seconds:,.0f}"), ("memory at each tenth, MB", memory)]
    return Report(
        title=f"{sent:,} fuzzed requests",
        setting=f"{options}; the service on core {options.service_cores}, "
        f"{_CONNECTIONS} connections from each of the cores {options.load_cores}.",
        columns=("what", "how many"),
        rows=rows,
        bars=bars,
    )


def _slope(weights: list[tuple[float, float]], rate: float) -> tuple[float, str]:
    """Return MB in 100,000 requests after a third of the time, and the weights in words."""
    times, sizes = np.array(weights).T
    late = times >= times[-1] / 3
    tenths = sizes[np.linspace(0, len(sizes) - 1, 11).astype(int)]
    told = f"{', '.join(f'{each:.0f}' for each in tenths)}; at most {sizes.max():.0f}"
    if late.sum() < 3:
        return 0.0, told
    a_second = float(np.polyfit(times[late], sizes[late], 1)[0])
    return 1e5 * a_second / rate, told


if __name__ == "__main__":
    sys.exit(run("fuzz", __doc__, measure, sys.argv[1:], 8510))
