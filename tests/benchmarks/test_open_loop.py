import asyncio
import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, repeat
from typing import cast

import numpy as np
import pytest

from benchmarks.serving.load import Target
from benchmarks.serving.open_loop import Load, Request, arrivals, due_times, percentiles
from benchmarks.serving.payloads import Content


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles([each / 1000 for each in range(1, 101)])
    assert found == pytest.approx({"p50": 51, "p90": 91, "p99": 100, "p99.9": 100, "most": 100})
    assert all(math.isnan(each) for each in percentiles([]).values())


def test_requests_are_due_at_random_at_the_rate_asked_for() -> None:
    times = due_times(rate=500, seconds=20, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (gaps > 0).all()
    assert times[-1] < 20
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential gaps have it
    assert times == due_times(rate=500, seconds=20, seed=1)
    assert times != due_times(rate=500, seconds=20, seed=2)


def test_latency_runs_from_when_a_request_was_due() -> None:
    late = Request(due=11.0, sent=11.5, answered=12.0, status=200)
    found = arrivals([late], begun=10.0, rate=1, warm_up=1, seconds=2)
    assert found.latencies["p50"] == pytest.approx(1000)
    assert found.lateness == pytest.approx(500)


def test_what_comes_of_a_stretch() -> None:
    requests = [
        Request(due=10.5, sent=10.5, answered=10.6, status=200),  # while warming up
        Request(due=11.0, sent=11.0, answered=11.1, status=200),
        Request(due=11.5, sent=11.5, answered=11.6, status=503),
        Request(due=12.0, sent=12.0, answered=14.0, status=200),  # after the end
        Request(due=12.5, sent=12.5, answered=17.5),  # never answered: until we gave up
    ]
    found = arrivals(requests, begun=10.0, rate=2, warm_up=1, seconds=2)
    assert found.offered == 4
    assert found.answers == {"200": 2, "503": 1, "given up": 1}
    assert found.good_rate == pytest.approx(0.5)
    assert found.answered == pytest.approx(0.25)
    assert found.latencies["p50"] == pytest.approx(2000)
    assert found.latencies["most"] == pytest.approx(5000)


def exchanged(requests: int, answers: Iterator[bytes]) -> list[Request]:
    """Send requests to a server in this process; it hangs up where an answer is empty."""
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(cast("asyncio.Task[None]", asyncio.current_task()))
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):  # the client hung up
            while await reader.readuntil(b"\r\n\r\n{}") and (answer := next(answers)):
                writer.write(answer)
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()

    async def load() -> list[Request]:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            message = Target(port, "/", Content({}, b"{}")).message
            sent, _ = await Load(port, message, most_connections=20).send([0.0] * requests)
            await asyncio.gather(*handlers)
            return sent

    return asyncio.run(load())


def test_requests_reach_a_server_and_their_statuses_come_back() -> None:
    good, refused = (
        b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\ndone"
        for status in (b"200 OK", b"503 Busy")
    )
    requests = exchanged(30, cycle([good, good, refused]))
    assert sorted(each.status for each in requests) == [200] * 20 + [503] * 10
    assert all(each.due <= each.sent <= each.answered for each in requests)


def test_a_server_that_hangs_up_is_told_apart_from_one_that_is_silent() -> None:
    requests = exchanged(1, repeat(b""))
    found = arrivals(requests, begun=requests[0].due, rate=1, warm_up=0, seconds=1)
    assert found.answers == {"hung up": 1}
