import asyncio
import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, cycle, repeat
from time import perf_counter
from typing import cast

import numpy as np
import pytest

from benchmarks.serving.load import Target
from benchmarks.serving.open_loop import (
    OpenLoop,
    OpenLoopResult,
    Request,
    due_times,
    late_note,
    percentiles,
    summarize,
)
from benchmarks.serving.payloads import Content


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles([each / 1000 for each in range(1, 101)])
    assert found == pytest.approx({"p50": 51, "p90": 91, "p99": 100, "p99.9": 100, "most": 100})
    assert all(math.isnan(each) for each in percentiles([]).values())


def test_due_times_are_poisson_arrivals_at_the_requested_rate() -> None:
    times = due_times(rate=500, seconds=20, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (gaps > 0).all()
    assert times[-1] < 20
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as for exponential gaps
    assert times == due_times(rate=500, seconds=20, seed=1)
    assert times != due_times(rate=500, seconds=20, seed=2)


def test_latency_is_measured_from_when_a_request_was_due() -> None:
    late = Request(due=11.0, taken=11.5, answered=12.0, status=200)
    result = summarize([late], begun=10.0, rate=1, warm_up=1, seconds=2)
    assert result.latencies["p50"] == pytest.approx(1000)
    assert result.lateness == pytest.approx(500)


@pytest.mark.parametrize(("lateness", "note"), [(0.9, ""), (5.0, " (sent 5.0 ms late)")])
def test_result_is_marked_where_the_load_generator_itself_was_late(
    lateness: float, note: str
) -> None:
    result = OpenLoopResult(100, 100, {"200": 100}, 100, percentiles([0.01]), 1.0, lateness)
    assert late_note([result]) == note


def test_summarize_leaves_out_the_warm_up_and_late_responses() -> None:
    requests = [
        Request(due=10.5, taken=10.5, answered=10.6, status=200),  # while warming up
        Request(due=11.0, taken=11.0, answered=11.1, status=200),
        Request(due=11.5, taken=11.5, answered=11.6, status=503),
        Request(due=12.0, taken=12.0, answered=14.0, status=200),  # after the end
        Request(due=12.5, taken=12.5, answered=17.5),  # never answered: until we give up
    ]
    result = summarize(requests, begun=10.0, rate=2, warm_up=1, seconds=2)
    assert result.offered == 4
    assert result.statuses == {"200": 2, "503": 1, "given up": 1}
    assert result.good_rate == pytest.approx(0.5)
    assert result.answered == pytest.approx(0.25)
    assert result.latencies["p50"] == pytest.approx(2000)
    assert result.latencies["most"] == pytest.approx(5000)


def load_local_server(requests: int, responses: Iterator[bytes]) -> list[Request]:
    """Send requests to a server in this process; it closes the connection for an empty response."""
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(cast("asyncio.Task[None]", asyncio.current_task()))
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):  # the client hung up
            while await reader.readuntil(b"\r\n\r\n{}") and (response := next(responses)):
                writer.write(response)
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()

    async def load() -> list[Request]:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            message = Target(port, "/", Content({}, b"{}")).message
            sent, _ = await OpenLoop(port, message, max_connections=20).send([0.0] * requests)
            await asyncio.gather(*handlers)
            return sent

    return asyncio.run(load())


def test_open_loop_sends_requests_and_records_their_statuses() -> None:
    good, refused = (
        b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\ndone"
        for status in (b"200 OK", b"503 Busy")
    )
    requests = load_local_server(30, cycle([good, good, refused]))
    assert sorted(each.status for each in requests) == [200] * 20 + [503] * 10
    assert all(each.due <= each.taken <= each.answered for each in requests)


def test_lateness_is_not_the_wait_for_a_connection_that_the_server_keeps_busy() -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
    first_responses: list[float] = []

    def note_time() -> Iterator[bytes]:
        first_responses.append(perf_counter())
        yield good

    requests = load_local_server(30, chain(note_time(), repeat(good)))  # over 20 connections
    assert all(each.taken < first_responses[0] for each in requests)


def test_open_loop_distinguishes_a_closed_connection_from_a_timeout() -> None:
    requests = load_local_server(1, repeat(b""))
    result = summarize(requests, begun=requests[0].due, rate=1, warm_up=0, seconds=1)
    assert result.statuses == {"hung up": 1}
