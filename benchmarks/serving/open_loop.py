"""Send requests at a given rate whether or not responses come: an open loop, like users.

    python -m benchmarks.serving.open_loop --port 8000 --rate 500 --seconds 5 REQUEST_FILE

The file holds one HTTP/1.1 request as it goes over the wire. Gaps between requests are exponential
(Poisson arrivals), from a seed, as many independent users make them, or all equal. A latency runs
from when a request was due, not from when it could be sent, so that a server which stalls is
charged for every request that was due meanwhile, which "coordinated omission" leaves out. A
request takes an idle connection, else a new one, else waits for one. The loop spins until the next
request is due, since timers are too coarse: give it a core of its own. Prints one line of JSON.

The load generators that Debian, PyPI and npm package leave a gap here: wrk, hey and autocannon are
closed loops, which send the next request when the last one is answered.
"""

import argparse
import asyncio
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import httptools
import numpy as np
import orjson
import uvloop

_FIRST_CONNECTIONS = 16
_TIMEOUT_SECONDS = 10.0  # after the last request was due
_MAX_LATENESS_MILLISECONDS = 1.0
_WAITING = 0
_HUNG_UP = 1
_NO_RESPONSE = {_WAITING: "given up", _HUNG_UP: "hung up"}
"""What stands for the status after a timeout, or where the server closed the connection."""


@dataclass(frozen=True)
class OpenLoopResult:
    """One measurement of an open loop.

    Latencies are of the responses with status 200 and of the requests without a response.
    """

    rate: float
    """The requested rate, requests per second."""
    offered: int
    statuses: dict[str, int]
    """How many responses of each status; "given up" or "hung up" where there was none."""
    good_rate: float
    """Responses with status 200 per second, by when they came in."""
    latencies: dict[str, float]
    """Percentile → milliseconds; a request without a response counts until that was known."""
    answered: float
    """Responses with status 200 as a share of the requests that were due in the same time."""
    lateness: float
    """99th percentile of the delay of this program itself, milliseconds, without the time that a
    request waits for a connection; above 1 ms `late_note` marks the result, since the latencies
    have it, too."""


@dataclass(slots=True)
class Request:
    """One request; times are seconds of `perf_counter`.

    uvloop's own clock counts whole milliseconds, and requests sent by it would come in bursts.
    """

    due: float
    taken: float
    """When the loop came to it: later than due if this program is too slow."""
    answered: float = 0.0
    status: int = _WAITING


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(
        self,
        free: Callable[["_Connection"], None],
        gone: Callable[["_Connection"], None],
    ) -> None:
        self._free = free
        self._gone = gone
        self._request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self._request is not None:
            self._request.status = _HUNG_UP
            self._request.answered = perf_counter()
        self._gone(self)

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def send(self, request: Request, message: bytes) -> bool:
        """Send a request; False if the connection has closed meanwhile."""
        if self._transport.is_closing():
            return False
        self._request = request
        self._transport.write(message)
        return True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._request is not None
        self._request.status = self._parser.get_status_code()
        self._request.answered = perf_counter()
        self._request = None
        keep = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if keep:
            self._free(self)
        else:
            self._transport.close()


class OpenLoop:
    """The connections of one measurement, and the requests that wait for one."""

    def __init__(self, port: int, message: bytes, max_connections: int) -> None:
        self._port, self._message, self._max_connections = port, message, max_connections
        self._idle: list[_Connection] = []
        self._waiting: deque[Request] = deque()
        self._connections: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def send(self, times: Sequence[float]) -> tuple[list[Request], float]:
        """Send a request at each of these times: seconds from now, rising.

        Returns the requests, once all are answered or given up, and when "now" was.
        """
        await asyncio.gather(*(self._open() for _ in range(_FIRST_CONNECTIONS)))
        requests = []
        begun = perf_counter()
        for time in times:
            due = begun + time
            while perf_counter() < due:
                await asyncio.sleep(0)
            requests.append(Request(due, taken=perf_counter()))
            self._take(requests[-1])
        deadline = perf_counter() + _TIMEOUT_SECONDS
        while perf_counter() < deadline and any(not each.answered for each in requests):
            await asyncio.sleep(0.01)
        for each in requests:
            each.answered = each.answered or perf_counter()
        for connection in list(self._connections):
            connection.close()
        return requests, begun

    def _take(self, request: Request) -> None:
        while self._idle:
            if self._idle.pop().send(request, self._message):
                return
        self._waiting.append(request)
        if len(self._connections) + len(self._opening) < self._max_connections:
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self._free, self._gone), "127.0.0.1", self._port
            )
        except OSError:
            return
        self._connections.add(connection)
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if self._waiting and connection.send(self._waiting[0], self._message):
            self._waiting.popleft()
        else:
            self._idle.append(connection)

    def _gone(self, connection: _Connection) -> None:
        self._connections.discard(connection)


def summarize(
    requests: list[Request], begun: float, rate: float, warm_up: float, seconds: float
) -> OpenLoopResult:
    """Summarize requests; those of the first `warm_up` seconds are left out."""
    start = begun + warm_up
    counted = [each for each in requests if each.due >= start]
    statuses = Counter(_NO_RESPONSE.get(each.status, str(each.status)) for each in counted)
    in_time = [each for each in requests if start <= each.answered < start + seconds]
    charged = [each.answered - each.due for each in counted if each.status in (200, *_NO_RESPONSE)]
    return OpenLoopResult(
        rate=rate,
        offered=len(counted),
        statuses=dict(statuses),
        good_rate=sum(each.status == 200 for each in in_time) / seconds,
        latencies=percentiles(charged),
        answered=sum(each.status == 200 for each in in_time) / max(1, len(counted)),
        lateness=1000 * float(np.quantile([each.taken - each.due for each in counted], 0.99)),
    )


def late_note(results: Sequence[OpenLoopResult]) -> str:
    """Return what to write behind latencies that the load generator itself has made longer."""
    late = median(each.lateness for each in results)
    return f" (sent {late:.1f} ms late)" if late > _MAX_LATENESS_MILLISECONDS else ""


def due_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Return when requests are due, seconds: exponential gaps with the mean 1 / rate."""
    generator = np.random.default_rng(seed)
    expected = rate * seconds
    gaps = generator.exponential(1 / rate, int(expected + 10 * np.sqrt(expected) + 10))
    times = np.cumsum(gaps)
    return list(times[times < seconds].astype(float))


def even_times(rate: float, seconds: float) -> list[float]:
    """Return when requests are due, seconds: equal gaps of 1 / rate."""
    return list((np.arange(1, rate * seconds) / rate).astype(float))


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds, each a value that occurred; NaN of no values."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "most": 1.0}
    if not seconds:
        return dict.fromkeys(shares, float("nan"))
    found = 1000 * np.quantile(seconds, list(shares.values()), method="higher")
    return dict(zip(shares, found.tolist(), strict=True))


def main(arguments: list[str]) -> None:
    """Send the requests, wait for the responses, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before these")
    parser.add_argument("--connections", type=int, default=1024, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--even", action="store_true", help="equal gaps between requests")
    options = parser.parse_args(arguments)
    seconds = options.warm_up + options.seconds
    poisson_times = partial(due_times, seed=options.seed)
    times = (even_times if options.even else poisson_times)(options.rate, seconds)

    async def send() -> tuple[list[Request], float]:
        return await OpenLoop(options.port, options.file.read_bytes(), options.connections).send(
            times
        )

    requests, begun = uvloop.run(send())
    found = summarize(requests, begun, options.rate, options.warm_up, options.seconds)
    sys.stdout.buffer.write(orjson.dumps(asdict(found)) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
