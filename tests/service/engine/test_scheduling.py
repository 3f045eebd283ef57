"""The queue alone: its jobs need no network, and its runs take the time that a test says."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from model.dropout.sampling import FixedSamples, Sampling
from service.engine.latency import Costs, LatencyEstimator
from service.engine.pending_requests import Answer, PendingRequest
from service.engine.scheduling import Batch, RequestQueue
from service.http.clients import CURRENT, Client, Turns

COSTS = Costs(trunk_seconds=0.01, head_seconds=0.001)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def queue() -> RequestQueue:
    return RequestQueue(batch_rows=64, slice_seconds=0.1, latency=LatencyEstimator(COSTS))


def awaited(
    loop: asyncio.AbstractEventLoop, rows: int, sampling: Sampling | None = None
) -> PendingRequest:
    job = PendingRequest(np.zeros((rows, 1, 1, 1), np.float32), sampling, 60)
    job.answer = asyncio.Future[Answer](loop=loop)
    return job


def taken(queue: RequestQueue, seconds: float) -> Batch | None:
    """Take a run that takes a time."""
    run = queue.take()
    if run is not None:
        run.started, run.ended = 1.0, 1.0 + seconds
        queue.ran(run)
    return run


def test_a_slice_has_as_many_rows_as_fit_its_time(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(awaited(loop, 45))
    parts = [run.part for run in iter(lambda: taken(queue, 0.1), None)]
    assert parts == [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 40), slice(40, 45)]
    assert queue.rows == 0
    assert not queue


def test_rows_that_take_longer_than_a_slice_are_run_one_by_one(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(awaited(loop, 3, FixedSamples(0, 1024)))
    assert [run.rows for run in iter(lambda: taken(queue, 1.0), None)] == [1, 1, 1]


def test_short_jobs_have_as_much_time_as_long_ones(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    queue.add(awaited(loop, 4, FixedSamples(0, 1024)))
    for _ in range(300):
        queue.add(awaited(loop, 1))
    runs = [taken(queue, 1.0)]  # of a long one
    runs += [taken(queue, 0.25) for _ in range(10)]
    order = "".join("long " if run and run.part else "short " for run in runs)
    assert order == "long short short short short long short long short long short "


def test_a_run_of_short_jobs_is_no_longer_than_a_slice(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    for _ in range(25):
        queue.add(awaited(loop, 1))
    assert [run.rows for run in iter(lambda: taken(queue, 0.1), None)] == [10, 10, 5]


def test_a_job_that_takes_much_of_a_run_is_run_alone(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    """As a short one it would delay others by as much for each client that sends one."""
    costly, cheap = awaited(loop, 9), awaited(loop, 1)
    queue.add(costly)
    queue.add(cheap)
    runs = list(iter(lambda: taken(queue, 0.1), None))
    assert [run.jobs for run in runs] == [[costly], [cheap]]
    assert runs[0].part == slice(0, 9)


def test_rows_that_wait_are_counted_until_they_are_run_or_withdrawn(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    long, short, other = awaited(loop, 30), awaited(loop, 1), awaited(loop, 1)
    for job in (long, short, other):
        queue.add(job)
    assert queue.rows == 32
    taken(queue, 0.1)
    assert queue.rows == 22
    queue.withdraw(long)
    queue.withdraw(short)
    assert queue.rows == 1
    assert (len(long.images), len(short.images)) == (0, 0)
    for job in (long, short):
        job.answer = None
    run = taken(queue, 0.1)
    assert run is not None
    assert run.jobs == [other]
    assert taken(queue, 0.1) is None
    assert queue.rows == 0
    assert not queue


def test_a_slice_that_is_taken_keeps_its_images_when_its_job_is_withdrawn(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    """Its thread may not have read them yet, and of no rows it would learn a cost of nothing."""
    job = awaited(loop, 30)
    queue.add(job)
    run = queue.take()
    queue.withdraw(job)
    assert run is not None
    assert len(job.images[run.part]) == run.rows == 10
    assert queue.rows == 0


def of_client(
    loop: asyncio.AbstractEventLoop, queue: RequestQueue, client: Client, rows: int = 1
) -> PendingRequest:
    """Let a job of a client wait."""
    job = awaited(loop, rows)
    before = CURRENT.set(client)
    queue.add(job)
    CURRENT.reset(before)
    return job


def test_short_jobs_of_several_clients_are_taken_in_turns(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    greedy, other = Client("10.0.0.1", Turns()), Client("10.0.0.2", Turns())
    first = [of_client(loop, queue, greedy) for _ in range(12)]
    late = of_client(loop, queue, other)
    run = queue.take()
    assert run is not None
    # 10 rows take the 0.1 seconds of a run.
    assert list(run.jobs) == [first[0], late, *first[1:9]]
    rest = [job for run in iter(queue.take, None) for job in run.jobs]
    assert rest == first[9:]


def test_a_client_with_less_than_an_equal_part_has_room_in_a_full_queue(
    queue: RequestQueue, loop: asyncio.AbstractEventLoop
) -> None:
    greedy, other = Client("10.0.0.1", Turns()), Client("10.0.0.2", Turns())
    for _ in range(10):
        of_client(loop, queue, greedy)
    for client, has_room in ((greedy, False), (other, True)):
        before = CURRENT.set(client)
        assert queue.has_room(1, most=10) is has_room
        CURRENT.reset(before)
    of_client(loop, queue, other, rows=5)
    before = CURRENT.set(other)
    assert not queue.has_room(1, most=10)
    CURRENT.reset(before)
