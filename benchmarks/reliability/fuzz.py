"""Send a million fuzzed requests: does one crash the service, or get the response of another?

    python -m benchmarks.reliability.fuzz [--quick] [--record]

Over many connections at once: mutated requests whose framing is right, pipelined in one or several
pieces, with good ones between, whose responses are known; good requests followed by one with a
malformed head or framing; and clients that hang up. Every response must carry the id of its
request, a good request must get its own response, and no response may have a status of 500 or more
but 503 and 504, or 501 and 505, which RFC 9110 defines for unsupported methods and versions.
Memory is measured each second; its slope is fitted to the last two thirds.
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
    good_bodies,
    good_request,
    replace_id,
)
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.services import Service
from benchmarks.reliability.wire import Address, complete_length, exchange, parse_responses

_REQUESTS, _QUICK_REQUESTS = 1_000_000, 20_000
_CONNECTIONS = 64
_PIPELINED = 12
_BATCHES_PER_CONNECTION = 50
_TIMEOUT_SECONDS = 20.0
_TRAILING_SECONDS = 0.05
_ALLOWED = {501, 503, 504, 505}
_MAX_MB = 1.0
"""Limit of the growth of memory in 100,000 requests."""
_SHOWN_TRACEBACKS = 5
_READ_BYTES = 65_536


def measure(options: Options) -> Report:
    """Fuzz the service and measure its memory."""
    total = _QUICK_REQUESTS if options.quick else _REQUESTS
    quiet = ("--log-level", "warning")
    with Service(
        options.folder("service"),
        options.models_folder,
        options.port,
        *quiet,
        cores=options.service_cores,
    ) as service:
        expected = _good_responses(service.address)
        started = time.monotonic()
        counts, memory_samples = _fuzz(options, service, total, expected)
        seconds = time.monotonic() - started
        is_alive = service.server.status is None and service.is_ready()
        errors = [each for each in service.log().splitlines() if "Traceback" in each]
        sys.stderr.writelines(f"{line}\n" for line in errors[:_SHOWN_TRACEBACKS])
        is_unchanged = _good_responses(service.address) == expected if is_alive else False
    return _report(
        options, counts, memory_samples, seconds, len(errors), is_healthy=is_alive and is_unchanged
    )


def _good_responses(address: Address) -> list[bytes]:
    """Return the response body of each good request, with the id replaced."""
    found = []
    for body in good_bodies():
        response = exchange(address, good_request(body, "to-learn"))
        assert response is not None, "the service does not answer a good request"
        assert response.status == 200, response
        found.append(replace_id(response.body, "to-learn"))
    assert len(set(found)) == len(found), "good requests must have different responses"
    return found


def _fuzz(
    options: Options, service: Service, total: int, expected: list[bytes]
) -> tuple[Counter[str], list[tuple[float, float]]]:
    """Return the counts, and the memory of the service as (seconds, MB) pairs."""
    processes = len(os.sched_getaffinity(0))
    shares = [total // processes] * processes
    memory_samples = []
    started = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        work: list[Future[Counter[str]]] = [
            pool.submit(_fuzz_in_process, service.address, share, seed, expected)
            for seed, share in enumerate(shares)
        ]
        while not all(each.done() for each in work):
            memory_samples.append(
                (time.monotonic() - started, service.server.proportional_memory())
            )
            time.sleep(1)
        return sum((each.result() for each in work), Counter[str]()), memory_samples


def _fuzz_in_process(
    address: Address, total: int, seed: int, expected: list[bytes]
) -> Counter[str]:
    return uvloop.run(_FuzzClient(address, total, seed, expected).run())


class _FuzzClient:
    """Sends the requests of one process over many connections."""

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
                self._left -= 1  # otherwise a service that has ended would be retried forever
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
        """Send some requests; return whether the connection stays open."""
        draw = self._random.random()
        if draw < 0.75:
            return await self._send_pipelined(reader, writer)
        if draw < 0.95:
            await self._send_malformed(reader, writer)
        else:
            await self._send_and_hang_up(writer)
        return False

    async def _send_pipelined(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
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
                message += self._fuzzer.well_framed(request_id)
        self._count_sent(len(ids))
        await self._write(writer, message)
        return await self._read(reader, ids, good)

    async def _write(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        """Send a message in pieces until the service closes the connection."""
        for piece in self._fuzzer.split(message):
            if writer.is_closing():
                return
            writer.write(piece)
            await asyncio.sleep(0)

    async def _read(
        self, reader: asyncio.StreamReader, ids: Sequence[str], good: dict[str, int]
    ) -> bool:
        """Read a response for each id; return whether all came."""
        data = b""
        for position, request_id in enumerate(ids):
            while not (size := complete_length(data)):
                try:
                    async with asyncio.timeout(_TIMEOUT_SECONDS):
                        piece = await reader.read(_READ_BYTES)
                except TimeoutError:
                    self.counts["never answered"] += 1
                    return False
                if not piece:
                    # It may close after an error, not after a good request.
                    if position and ids[position - 1] in good:
                        self.counts["closed after a good request"] += 1
                    return False
                data += piece
            self._check(data[:size], request_id, good)
            data = data[size:]
        if data:
            self.counts["more responses than requests"] += 1
            return False
        return True

    def _check(self, data: bytes, request_id: str, good: dict[str, int]) -> None:
        response = parse_responses(data)[-1]
        self._count(response.status)
        if response.request_id.startswith("fuzz-") and response.request_id != request_id:
            self.counts["responses to another request"] += 1
        if request_id not in good or response.status in _ALLOWED:
            return
        is_right = response.status == 200 and response.request_id == request_id
        expected = self._expected[good[request_id]]
        if not is_right or replace_id(response.body, request_id) != expected:
            self.counts["good requests answered wrongly"] += 1
            outcome = (
                f"{response.status}, {'with' if response.request_id == request_id else 'without'}"
            )
            self.counts[f"wrong: {outcome} its id"] += 1

    async def _send_malformed(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send a good request and a malformed one after it."""
        good, other = self._next_id(), self._next_id()
        which = self._random.randrange(len(self._bodies))
        self._count_sent(2)
        message = good_request(self._bodies[which], good) + self._fuzzer.badly_framed(other)
        await self._write(writer, message)
        data = b""
        while not (size := complete_length(data)):
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    piece = await reader.read(_READ_BYTES)
            except TimeoutError:
                piece = b""
            if not piece:
                self.counts["good requests without a response"] += 1
                return
            data += piece
        self._check(data[:size], good, {good: which})
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_TRAILING_SECONDS):
                data = data[size:] + await reader.read(_READ_BYTES)
                for response in parse_responses(data):
                    self._count(response.status)
                    if response.request_id == good:
                        self.counts["responses to another request"] += 1

    async def _send_and_hang_up(self, writer: asyncio.StreamWriter) -> None:
        self._count_sent(1)
        message = self._fuzzer.well_framed(self._next_id())
        await self._write(writer, self._fuzzer.truncate(message))

    def _count(self, status: int) -> None:
        self.counts[f"status {status}"] += 1
        if status >= 500 and status not in _ALLOWED:
            self.counts["server errors"] += 1

    def _count_sent(self, count: int) -> None:
        self._left -= count
        self.counts["requests"] += count

    def _next_id(self) -> str:
        """Make an id that a mutation of a few bytes cannot turn into another; heads are fuzzed."""
        self._number += 1
        digest = hashlib.blake2b(f"{self._seed} {self._number}".encode(), digest_size=8)
        return f"fuzz-{digest.hexdigest()}-"


def _report(
    options: Options,
    counts: Counter[str],
    memory_samples: list[tuple[float, float]],
    seconds: float,
    tracebacks: int,
    *,
    is_healthy: bool,
) -> Report:
    sent = counts["requests"]
    slope, memory = _slope(memory_samples, sent / seconds)
    must_be_zero = (
        "server errors",
        "responses to another request",
        "good requests answered wrongly",
        "good requests without a response",
        "closed after a good request",
        "more responses than requests",
        "never answered",
    )
    criteria = [
        Criterion(
            "crashes",
            "none" if is_healthy else "it is down, or responds differently",
            "none",
            is_healthy,
        ),
        Criterion("tracebacks in the log", f"{tracebacks}", "0", tracebacks == 0),
        *(Criterion(each, f"{counts[each]:,}", "0", counts[each] == 0) for each in must_be_zero),
    ]
    if not options.quick:
        description = f"{slope:.2f} MB in 100,000 requests"
        criteria.append(
            Criterion("memory growth", description, f"at most {_MAX_MB:g}", slope <= _MAX_MB)
        )
    rows = [
        (name, f"{count:,}") for name, count in sorted(counts.items()) if name not in must_be_zero
    ]
    rows += [("requests a second", f"{sent / seconds:,.0f}"), ("memory at each tenth, MB", memory)]
    return Report(
        title=f"{sent:,} fuzzed requests",
        setting=f"{options}; the service on core {options.service_cores}, "
        f"{_CONNECTIONS} connections from each of the cores {options.load_cores}.",
        columns=("what", "how many"),
        rows=rows,
        criteria=criteria,
    )


def _slope(memory_samples: list[tuple[float, float]], rate: float) -> tuple[float, str]:
    """Return MB per 100,000 requests, fitted after a third of the time, and a description."""
    times, sizes = np.array(memory_samples).T
    late = times >= times[-1] / 3
    tenths = sizes[np.linspace(0, len(sizes) - 1, 11).astype(int)]
    description = f"{', '.join(f'{each:.0f}' for each in tenths)}; at most {sizes.max():.0f}"
    if late.sum() < 3:
        return 0.0, description
    a_second = float(np.polyfit(times[late], sizes[late], 1)[0])
    return 1e5 * a_second / rate, description


if __name__ == "__main__":
    sys.exit(run("fuzz", __doc__, measure, sys.argv[1:], 8510))
