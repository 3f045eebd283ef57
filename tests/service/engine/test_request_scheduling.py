"""The request queue alone, with batches that take a time chosen by the test."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from model.dropout.sampling_methods import FixedSamples, Sampling
from service.engine.latency_estimator import Costs, LatencyEstimator
from service.engine.pending_requests import PendingRequest, Result
from service.engine.request_scheduling import Batch, RequestQueue
from service.http.client_quotas import CURRENT_CLIENT, Client, LoopQuota

COSTS = Costs(trunk_seconds=0.01, head_seconds=0.001)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def queue() -> RequestQueue:
    return RequestQueue(batch_rows=64, slice_seconds=0.1, latency=LatencyEstimator(COSTS))


def pending(
    loop: asyncio.AbstractEventLoop, rows: int, sampling: Sampling | None = None
) -> PendingRequest:
    request = PendingRequest(np.zeros((rows, 1, 1, 1), np.float32), sampling, 60)
    request.future = asyncio.Future[Result](loop=loop)
    return request


def run_next(queue: RequestQueue, seconds: float) -> Batch | None:
    """Take the next batch, and finish it as if it had run for `seconds`."""
    batch = queue.next_batch()
    if batch is not None:
        batch.started, batch.ended = 1.0, 1.0 + seconds
        queue.finish(batch)
    return batch


def test_slice_has_as_many_rows_as_fit_its_time(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(pending(loop, 45))
    slices = [batch.row_slice for batch in iter(lambda: run_next(queue, 0.1), None)]
    assert slices == [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 40), slice(40, 45)]
    assert queue.rows == 0
    assert not queue


def test_rows_longer_than_a_slice_run_one_by_one(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(pending(loop, 3, FixedSamples(0, 1024)))
    assert [batch.rows for batch in iter(lambda: run_next(queue, 1.0), None)] == [1, 1, 1]


def test_short_and_long_requests_get_equal_run_time(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(pending(loop, 4, FixedSamples(0, 1024)))
    for _ in range(300):
        queue.add(pending(loop, 1))
    batches = [run_next(queue, 1.0)]  # of a long request
    batches += [run_next(queue, 0.25) for _ in range(10)]
    order = "".join("long " if batch and batch.row_slice else "short " for batch in batches)
    assert order == "long short short short short long short long short long short "


def test_batch_of_short_requests_is_no_longer_than_a_slice(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    for _ in range(25):
        queue.add(pending(loop, 1))
    assert [batch.rows for batch in iter(lambda: run_next(queue, 0.1), None)] == [10, 10, 5]


def test_costly_request_runs_alone(queue: RequestQueue, loop: asyncio.AbstractEventLoop) -> None:
    """As short requests, those of many clients would together delay another by as much."""
    costly, cheap = pending(loop, 9), pending(loop, 1)
    queue.add(costly)
    queue.add(cheap)
    batches = list(iter(lambda: run_next(queue, 0.1), None))
    assert [batch.requests for batch in batches] == [[costly], [cheap]]
    assert batches[0].row_slice == slice(0, 9)


def test_queue_counts_rows_until_they_run_or_are_removed(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    long, short, other = pending(loop, 30), pending(loop, 1), pending(loop, 1)
    for request in (long, short, other):
        queue.add(request)
    assert queue.rows == 32
    run_next(queue, 0.1)
    assert queue.rows == 22
    queue.remove(long)
    queue.remove(short)
    assert queue.rows == 1
    assert (len(long.images), len(short.images)) == (0, 0)
    for request in (long, short):
        request.future = None
    batch = run_next(queue, 0.1)
    assert batch is not None
    assert batch.requests == [other]
    assert run_next(queue, 0.1) is None
    assert queue.rows == 0
    assert not queue


def test_removed_request_keeps_the_images_of_its_running_slice(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    """The thread may not have read them yet, and would measure a cost of 0 for no rows."""
    request = pending(loop, 30)
    queue.add(request)
    batch = queue.next_batch()
    queue.remove(request)
    assert batch is not None
    assert len(request.images[batch.row_slice]) == batch.rows == 10
    assert queue.rows == 0


def add_for_client(
    loop: asyncio.AbstractEventLoop, queue: RequestQueue, client: Client, rows: int = 1
) -> PendingRequest:
    """Queue a request of a client."""
    request = pending(loop, rows)
    before = CURRENT_CLIENT.set(client)
    queue.add(request)
    CURRENT_CLIENT.reset(before)
    return request


def test_short_requests_of_several_clients_take_turns(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    greedy, other = Client("10.0.0.1", LoopQuota()), Client("10.0.0.2", LoopQuota())
    first = [add_for_client(loop, queue, greedy) for _ in range(12)]
    late = add_for_client(loop, queue, other)
    batch = queue.next_batch()
    assert batch is not None
    # 10 rows take the 0.1 seconds of the longest run.
    assert list(batch.requests) == [first[0], late, *first[1:9]]
    rest = [request for batch in iter(queue.next_batch, None) for request in batch.requests]
    assert rest == first[9:]


def test_full_queue_has_room_for_a_client_below_its_equal_share(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    greedy, other = Client("10.0.0.1", LoopQuota()), Client("10.0.0.2", LoopQuota())
    for _ in range(10):
        add_for_client(loop, queue, greedy)
    for client, has_room in ((greedy, False), (other, True)):
        before = CURRENT_CLIENT.set(client)
        assert queue.has_room(1, max_rows=10) is has_room
        CURRENT_CLIENT.reset(before)
    add_for_client(loop, queue, other, rows=5)
    before = CURRENT_CLIENT.set(other)
    assert not queue.has_room(1, max_rows=10)
    CURRENT_CLIENT.reset(before)
