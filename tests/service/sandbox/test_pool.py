"""Bodies that are read in processes of their own, which end when they should."""

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
from service.errors import BodyTooCostlyError, NotReadyError, OverloadedError
from service.http import body as bodies
from service.observability.metrics import Metrics
from service.sandbox.image_reader import ImageReader
from service.settings import ServiceSettings
from tests.conftest import ROOT
from tests.pictures import encode, instances
from tests.service.bad_requests import CASES, Case
from tests.service.serving import PATIENCE_SECONDS, Application, check_error, serving_models
from tests.service.test_errors import STATUSES

SPEC = InputSpec(channels=1, height=8, width=8, resize="pad")
PHOTO = encode(np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8))
LARGE = encode(np.zeros((4000, 5000), np.uint8), "WEBP", lossless=True, method=0)
"""Some hundred bytes; half a second of a processor, and 400 megabytes."""

Use = Callable[[ImageReader], Coroutine[Any, Any, None]]


def using(use: Use, **settings: Any) -> None:
    """Run something with a reader, and leave no process behind."""
    OTHERS.clear()
    OTHERS.update(children())  # of applications that other tests share

    async def run() -> None:
        reader = ImageReader(ServiceSettings(**settings), Metrics())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await use(reader)
        finally:
            await reader.close()
        assert children() == []

    asyncio.run(run())


OTHERS: set[int] = set()


def children() -> list[int]:
    """The sandbox processes of the reader in use."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread or process has just ended
            for child in (task / "children").read_text().split():
                if b"sandbox_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(int(child))
    return list(found - OTHERS)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def answered(answer: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(answer)


def test_a_photograph_is_what_it_would_be_here() -> None:
    async def use(reader: ImageReader) -> None:
        found = await reader.decode([PHOTO, PHOTO], SPEC, "a")
        np.testing.assert_array_equal(found, to_float(np.stack([decode(PHOTO, SPEC)] * 2)))
        assert len(children()) == 1

    using(use)


def test_who_takes_too_long_is_ended_and_the_next_is_served() -> None:
    async def use(reader: ImageReader) -> None:
        for _ in range(2):
            with pytest.raises(BodyTooCostlyError, match="To read this body takes too much time"):
                await reader.decode([LARGE], SPEC, "a")
            await reader.decode([PHOTO], SPEC, "a")

    using(use, decode_timeout_seconds=0.1)


def test_who_takes_too_much_memory_is_refused_and_the_next_is_served() -> None:
    async def use(reader: ImageReader) -> None:
        reader._sandbox._process_bytes = 2**26
        large = encode(np.zeros((9000, 9000), np.uint8))
        with pytest.raises(BodyTooCostlyError, match="To read this body takes too much memory"):
            await reader.decode([large], SPEC, "a")
        await reader.decode([PHOTO], SPEC, "a")

    using(use, max_image_pixels=100_000_000, max_request_pixels=100_000_000)


def test_what_would_take_more_memory_than_there_is_for_all_is_not_begun() -> None:
    async def use(reader: ImageReader) -> None:
        reader._sandbox._working_bytes = 2**26
        with pytest.raises(BodyTooCostlyError, match="takes too much memory"):
            await reader.decode([LARGE], SPEC, "a")

    using(use)


def test_together_they_take_no_more_memory_than_one_may() -> None:
    async def use(reader: ImageReader) -> None:
        sandbox = reader._sandbox
        lowest = sandbox._free_bytes
        answers = [answered(reader.decode([LARGE], SPEC, client)) for client in "abc"]
        while not all(each.done() for each in answers):
            await asyncio.sleep(0.001)
            lowest = min(lowest, sandbox._free_bytes)
        assert [each.exception() for each in answers] == [None] * 3
        assert 0 <= lowest < sandbox._working_bytes // 2
        await until(lambda: sandbox._free_bytes == sandbox._working_bytes)

    using(use, decode_processes=3)


def test_those_that_wait_for_memory_do_not_wait_for_each_other() -> None:
    """A JSON text takes memory to be read, and then the images in it do."""
    picture = encode(np.zeros((1500, 1500), np.uint8))
    text = instances([picture]) + b" " * 2**20

    async def use(reader: ImageReader) -> None:
        reader._sandbox._working_bytes = reader._sandbox._free_bytes = 40 * 2**20
        task = reader._sandbox.task("images", SPEC, reader.limits)
        answers = [reader._sandbox.run(task, text, client, 2**20) for client in "abc"]
        for content, _ in await asyncio.gather(*answers):
            assert content["shape"] == [1, 1, 8, 8]

    using(use, decode_processes=3)


def test_a_client_that_hangs_up_leaves_nobody_its_answer() -> None:
    async def use(reader: ImageReader) -> None:
        await reader.decode([PHOTO], SPEC, "a")
        (process,) = children()
        leaving = answered(reader.decode([LARGE], SPEC, "a"))
        await until(lambda: bool(reader._sandbox._tasks))
        waiting = answered(reader.decode([LARGE], SPEC, "a"))
        await asyncio.sleep(0)
        for each in (waiting, leaving):
            each.cancel()
        await asyncio.gather(leaving, waiting, return_exceptions=True)
        found = await reader.decode([PHOTO], SPEC, "a")
        np.testing.assert_array_equal(found[0], to_float(decode(PHOTO, SPEC)))
        assert process not in children()
        assert reader._sandbox._line_bytes == reader._sandbox._jobs == 0

    using(use)


def test_one_address_never_has_every_process() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [answered(reader.decode([LARGE], SPEC, "greedy")) for _ in range(3)]
        await until(lambda: bool(children()))
        await reader.decode([PHOTO], SPEC, "modest")
        assert sum(each.done() for each in greedy) <= 1
        await asyncio.gather(*greedy)

    using(use, decode_processes=2)


def test_who_has_used_much_time_comes_after_who_has_used_little() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [answered(reader.decode([LARGE], SPEC, "greedy")) for _ in range(3)]
        await until(lambda: bool(children()))
        await asyncio.gather(*(reader.decode([PHOTO], SPEC, "modest") for _ in range(20)))
        assert sum(each.done() for each in greedy) <= 1
        await asyncio.gather(*greedy)

    using(use, decode_processes=1)


def test_one_address_has_half_of_the_line_and_no_more() -> None:
    async def use(reader: ImageReader) -> None:
        greedy = [answered(reader.decode([PHOTO], SPEC, "greedy")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="Too many large bodies are waiting to be read"):
            await reader.decode([PHOTO], SPEC, "greedy")
        await reader.decode([PHOTO], SPEC, "modest")
        await asyncio.gather(*greedy)

    using(use, max_concurrent_requests=4)


def test_the_bytes_in_line_are_bounded_too() -> None:
    async def use(reader: ImageReader) -> None:
        body = PHOTO + bytes(100_000 - len(PHOTO))
        greedy = [answered(reader.decode([body], SPEC, "greedy")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await reader.decode([body], SPEC, "greedy")
        await asyncio.gather(*greedy)

    using(use, max_body_bytes=100_000)


def test_the_end_of_the_service_waits_for_no_body() -> None:
    async def use(reader: ImageReader) -> None:
        asked = [answered(reader.decode([LARGE], SPEC, "a")) for _ in range(2)]
        await until(lambda: bool(children()))
        await reader.close()
        for each in asked:
            with pytest.raises(NotReadyError, match="The server is stopping"):
                await each
        with pytest.raises(NotReadyError):
            await reader.decode([PHOTO], SPEC, "a")

    using(use)


ORPHAN = """
import asyncio, os
from service.sandbox.pool import Sandbox
from service.settings import ServiceSettings

async def main():
    sandbox = Sandbox(ServiceSettings())
    sandbox._start_first()
    while not sandbox._idle:
        await asyncio.sleep(0.01)
    print(sandbox._idle[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_process_ends_with_the_service_however_that_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        process = os.pidfd_open(int(service.stdout.readline()))
        service.send_signal(signal.SIGKILL)
        info = None
        try:  # it is no child of ours: its end makes the descriptor readable
            info = select.select([process], [], [], PATIENCE_SECONDS)[0]
        finally:
            os.close(process)
    assert info == [process]


def test_a_process_is_lean() -> None:
    code = "import sys, service.sandbox.serving; print(*{n.split('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "PIL", "orjson"} <= loaded
    assert loaded & {"onnxruntime", "fastapi", "starlette", "uvicorn", "asyncio", "torch"} == set()


@pytest.fixture(scope="module")
def sandboxed(models_folder: Path) -> Iterator[Application]:
    """The shared application's like, that reads not the smallest body on its event loop."""
    limits = {"max_images": 8, "max_body_bytes": 100_000, "max_request_pixels": 40_000}
    with (
        pytest.MonkeyPatch.context() as patch,
        serving_models(
            models_folder, max_image_pixels=30_000, max_samples=512, **limits
        ) as application,
    ):
        patch.setattr(bodies, "SMALL_BYTES", -1)
        yield application


OF_BODIES = [
    case
    for case in CASES
    if case.method == "POST" and "/repository/" not in case.url and "?" not in case.url
]


@pytest.mark.parametrize("case", OF_BODIES, ids=lambda case: f"{case.code}: {case.what[:60]}")
def test_a_bad_body_is_answered_as_if_it_was_read_here(sandboxed: Application, case: Case) -> None:
    content = case.body() if callable(case.body) else case.body
    options = {"content": content, "headers": case.headers, "files": case.files}
    response = sandboxed.request(case.method, case.url, **options)
    check_error(response, STATUSES[case.code], case.code, case.sentence)
