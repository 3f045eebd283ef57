"""Calls on daemon threads: those whose thread is stuck count, until it ends."""

import asyncio
import threading

import pytest

from service.engine.daemon_threads import _MAX_STUCK_THREADS, DaemonThreads
from tests.service.serving import TIMEOUT_SECONDS, wait

NAME = "a disk of a test"


def end_threads(release: threading.Event) -> None:
    """Let the threads end, while the event loop does nothing else."""
    release.set()
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join(TIMEOUT_SECONDS)


def test_call_that_ends_while_its_timeout_is_handled_leaves_no_stuck_thread() -> None:
    async def run() -> str:
        threads = DaemonThreads(NAME)
        for _ in range(_MAX_STUCK_THREADS):
            release = threading.Event()
            asyncio.get_running_loop().call_soon(end_threads, release)  # just before the timeout
            with pytest.raises(TimeoutError):
                await threads.call(0, wait, release)
        return await threads.call(TIMEOUT_SECONDS, lambda: "an answer")

    assert asyncio.run(run()) == "an answer"


def test_no_call_begins_while_too_many_threads_are_stuck() -> None:
    async def run() -> str:
        threads, release = DaemonThreads(NAME), threading.Event()
        for _ in range(_MAX_STUCK_THREADS):
            with pytest.raises(TimeoutError):
                await threads.call(0, wait, release)
        with pytest.raises(TimeoutError):
            await threads.call(TIMEOUT_SECONDS, lambda: "an answer")
        end_threads(release)
        return await threads.call(TIMEOUT_SECONDS, lambda: "an answer")

    assert asyncio.run(run()) == "an answer"
