"""The pool of sandbox processes: limits, fairness between clients, and its end."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.images.preprocessing import InputSpec, decode, to_float
from service.errors import BodyTooCostlyError, OverloadedError, StoppingError
from service.http import request_body
from service.observability.metrics_recorder import Metrics
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings
from tests.conftest import ROOT
from tests.pictures import encode, instances
from tests.service.bad_requests import CASES, Case
from tests.service.serving import TIMEOUT_SECONDS, Application, check_error, serving_models
from tests.service.test_errors import STATUSES

SPEC = InputSpec(channels=1, height=8, width=8, resize="pad")
PHOTO = encode(np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8))
COSTLY = encode(np.zeros((4000, 5000), np.uint8), "WEBP", lossless=True, method=0)
"""A file of some hundred bytes, which takes half a second and 400 megabytes to decode."""

UseReader = Callable[[ImageReader], Coroutine[Any, Any, None]]


def run_with_reader(use: UseReader, **settings: Any) -> None:
    """Run a coroutine with a reader, and check that no sandbox process is left."""
    UNRELATED.clear()
    UNRELATED.update(sandbox_pids())  # processes of applications that other tests share

    async def run() -> None:
        reader = ImageReader(ServiceSettings(**settings), Metrics())
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await use(reader)
        finally:
            await reader.close()
        assert sandbox_pids() == []

    asyncio.run(run())


UNRELATED: set[int] = set()


def sandbox_pids() -> list[int]:
    """Return the process ids of the reader's sandbox processes."""
    pids: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread or process has just ended
            for child in (task / "children").read_text().split():
                if (
                    b"service.sandbox.child_process_main"
                    in Path(f"/proc/{child}/cmdline").read_bytes()
                ):
                    pids.add(int(child))
    return list(pids - UNRELATED)


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def start_task(answer: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(answer)


def test_sandbox_decodes_a_photograph_as_the_service_does() -> None:
    async def use(reader: ImageReader) -> None:
        images = await reader.decode([PHOTO, PHOTO], SPEC, "a")
        np.testing.assert_array_equal(images, to_float(np.stack([decode(PHOTO, SPEC)] * 2)))
        assert len(sandbox_pids()) == 1

    run_with_reader(use)


def test_sandbox_kills_a_slow_task_and_serves_the_next() -> None:
    async def use(reader: ImageReader) -> None:
        for _ in range(2):
            with pytest.raises(BodyTooCostlyError, match="To read this body takes too much time"):
                await reader.decode([COSTLY], SPEC, "a")
            await reader.decode([PHOTO], SPEC, "a")

    run_with_reader(use, decode_timeout_seconds=0.1)


def test_sandbox_refuses_a_task_above_its_memory_limit_and_serves_the_next() -> None:
    async def use(reader: ImageReader) -> None:
        reader._sandbox._process_bytes = 2**26
        large = encode(np.zeros((9000, 9000), np.uint8))
        with pytest.raises(BodyTooCostlyError, match="To read this body takes too much memory"):
            await reader.decode([large], SPEC, "a")
        await reader.decode([PHOTO], SPEC, "a")

    run_with_reader(use, max_image_pixels=100_000_000, max_request_pixels=100_000_000)


def test_sandbox_refuses_a_reservation_above_the_total_memory() -> None:
    async def use(reader: ImageReader) -> None:
        reader._sandbox._memory.total_bytes = 2**26
        with pytest.raises(BodyTooCostlyError, match="takes too much memory"):
            await reader.decode([COSTLY], SPEC, "a")

    run_with_reader(use)


def test_sandbox_reservations_never_exceed_the_total_memory() -> None:
    async def use(reader: ImageReader) -> None:
        sandbox = reader._sandbox
        lowest = sandbox._memory.free_bytes
        answers = [start_task(reader.decode([COSTLY], SPEC, client)) for client in "abc"]
        while not all(each.done() for each in answers):
            await asyncio.sleep(0.001)
            lowest = min(lowest, sandbox._memory.free_bytes)
        assert [each.exception() for each in answers] == [None] * 3
        assert 0 <= lowest < sandbox._memory.total_bytes // 2
        await wait_until(lambda: sandbox._memory.free_bytes == sandbox._memory.total_bytes)

    run_with_reader(use, decode_processes=3)


def test_sandbox_reservations_do_not_deadlock() -> None:
    """A JSON body reserves memory to be parsed, and then memory for its images."""
    picture = encode(np.zeros((1500, 1500), np.uint8))
    text = instances([picture]) + b" " * 2**20

    async def use(reader: ImageReader) -> None:
        reader._sandbox._memory.total_bytes = reader._sandbox._memory.free_bytes = 40 * 2**20
        task = reader._sandbox.task("images", SPEC, reader.limits)
        answers = [reader._sandbox.run(task, text, client, 2**20) for client in "abc"]
        for content, _ in await asyncio.gather(*answers):
            assert content["shape"] == [1, 1, 8, 8]

    run_with_reader(use, decode_processes=3)


def test_sandbox_cancels_the_job_of_a_disconnected_client() -> None:
    async def use(reader: ImageReader) -> None:
        await reader.decode([PHOTO], SPEC, "a")
        (process,) = sandbox_pids()
        leaving = start_task(reader.decode([COSTLY], SPEC, "a"))
        await wait_until(lambda: bool(reader._sandbox._tasks))
        waiting = start_task(reader.decode([COSTLY], SPEC, "a"))
        await asyncio.sleep(0)
        for each in (waiting, leaving):
            each.cancel()
        await asyncio.gather(leaving, waiting, return_exceptions=True)
        images = await reader.decode([PHOTO], SPEC, "a")
        np.testing.assert_array_equal(images[0], to_float(decode(PHOTO, SPEC)))
        assert process not in sandbox_pids()
        assert reader._sandbox._queue.total_bytes == reader._sandbox._queue.job_count == 0

    run_with_reader(use)


def test_sandbox_leaves_one_process_for_other_clients() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [start_task(reader.decode([COSTLY], SPEC, "greedy")) for _ in range(3)]
        await wait_until(lambda: bool(sandbox_pids()))
        await reader.decode([PHOTO], SPEC, "modest")
        assert sum(each.done() for each in greedy) <= 1
        await asyncio.gather(*greedy)

    run_with_reader(use, decode_processes=2)


def test_sandbox_runs_jobs_of_the_least_served_client_first() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [start_task(reader.decode([COSTLY], SPEC, "greedy")) for _ in range(3)]
        await wait_until(lambda: bool(sandbox_pids()))
        await asyncio.gather(*(reader.decode([PHOTO], SPEC, "modest") for _ in range(20)))
        assert sum(each.done() for each in greedy) <= 1
        await asyncio.gather(*greedy)

    run_with_reader(use, decode_processes=1)


def test_sandbox_limits_a_client_to_half_of_the_queued_jobs() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [start_task(reader.decode([PHOTO], SPEC, "greedy")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="Too many large bodies are waiting to be read"):
            await reader.decode([PHOTO], SPEC, "greedy")
        await reader.decode([PHOTO], SPEC, "modest")
        await asyncio.gather(*greedy)

    run_with_reader(use, max_concurrent_requests=4)


def test_sandbox_limits_a_client_to_half_of_the_queued_bytes() -> None:
    async def use(reader: ImageReader) -> None:
        body = PHOTO + bytes(100_000 - len(PHOTO))
        greedy = [start_task(reader.decode([body], SPEC, "greedy")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await reader.decode([body], SPEC, "greedy")
        await asyncio.gather(*greedy)

    run_with_reader(use, max_body_bytes=100_000)


def test_sandbox_close_fails_waiting_and_running_jobs() -> None:
    async def use(reader: ImageReader) -> None:
        pending = [start_task(reader.decode([COSTLY], SPEC, "a")) for _ in range(2)]
        await wait_until(lambda: bool(sandbox_pids()))
        await reader.close()
        for each in pending:
            with pytest.raises(StoppingError, match="The server is stopping"):
                await each
        with pytest.raises(StoppingError):
            await reader.decode([PHOTO], SPEC, "a")

    run_with_reader(use)


ORPHAN = """
import asyncio, os
from service.sandbox.process_pool import SandboxPool
from service.settings import ServiceSettings

async def main():
    sandbox = SandboxPool(ServiceSettings())
    sandbox._start_first_process()
    while not sandbox._idle:
        await asyncio.sleep(0.01)
    print(sandbox._idle[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_sandbox_process_ends_when_the_service_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        process = os.pidfd_open(int(service.stdout.readline()))
        service.send_signal(signal.SIGKILL)
        info = None
        try:  # not a child of this process; a pidfd becomes readable when its process ends
            info = select.select([process], [], [], TIMEOUT_SECONDS)[0]
        finally:
            os.close(process)
    assert info == [process]


def test_sandbox_process_imports_no_web_framework_or_inference_engine() -> None:
    code = (
        "import sys, service.sandbox.child_process_loop; "
        "print(*{n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "PIL", "orjson"} <= loaded
    assert loaded & {"onnxruntime", "fastapi", "starlette", "uvicorn", "asyncio", "torch"} == set()


@pytest.fixture(scope="module")
def sandboxed(models_folder: Path) -> Iterator[Application]:
    """An application like the shared one that decodes every body in a sandbox process."""
    limits = {"max_images": 8, "max_body_bytes": 100_000, "max_request_pixels": 40_000}
    with (
        pytest.MonkeyPatch.context() as patch,
        serving_models(
            models_folder, max_image_pixels=30_000, max_samples=512, **limits
        ) as application,
    ):
        patch.setattr(request_body, "MAX_INLINE_BODY_BYTES", -1)
        yield application


BODY_CASES = [
    case
    for case in CASES
    if case.method == "POST" and "/repository/" not in case.url and "?" not in case.url
]


@pytest.mark.parametrize("case", BODY_CASES, ids=lambda case: f"{case.code}: {case.what[:60]}")
def test_bad_body_gets_the_same_error_from_a_sandbox_process(
    sandboxed: Application, case: Case
) -> None:
    content = case.body() if callable(case.body) else case.body
    options = {"content": content, "headers": case.headers, "files": case.files}
    response = sandboxed.request(case.method, case.url, **options)
    check_error(response, STATUSES[case.code], case.code, case.sentence)
