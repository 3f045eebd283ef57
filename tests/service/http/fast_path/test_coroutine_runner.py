"""A coroutine that CoroutineRunner runs behaves as one that a task runs."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from service.http.fast_path.coroutine_runner import CoroutineRunner


class Running:
    """A coroutine that a runner has started, and what became of it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.result: Any = None
        self.is_closed = False
        self.has_ended = asyncio.Event()
        self.tasks: set[Any] = set()
        CoroutineRunner(coroutine, self._finish, self._close, self.tasks).start()

    def _finish(self, result: Any) -> None:
        self.result = result
        self.has_ended.set()

    def _close(self) -> None:
        self.is_closed = True
        self.has_ended.set()

    async def end(self) -> Any:
        await self.has_ended.wait()
        await asyncio.sleep(0)
        assert self.tasks == set()
        return self.result


def test_coroutine_that_does_not_wait_ends_at_the_start() -> None:
    async def seven() -> int:
        return 7

    async def scenario() -> int:
        return int(Running(seven()).result)

    assert asyncio.run(scenario()) == 7


@pytest.mark.parametrize("waits", [0, 1, 2])
def test_error_of_the_coroutine_closes_the_connection(waits: int) -> None:
    async def scenario() -> None:
        errors: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))

        async def fail() -> None:
            for _ in range(waits):
                future: asyncio.Future[None] = loop.create_future()
                loop.call_soon(future.set_result, None)
                await future
            raise ValueError("expected")

        try:
            running = Running(fail())
            await running.has_ended.wait()
            assert running.is_closed
            del running
            await asyncio.sleep(0)
            gc.collect()  # a task that failed says so when it is deleted
        except ValueError as error:
            errors.append(error)
        assert [str(error) for error in errors] == ["expected"]

    asyncio.run(scenario())


def test_coroutine_may_wait_for_anything() -> None:
    async def endpoint() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.to_thread(lambda: "done"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return task.result()

    async def scenario() -> str:
        return str(await Running(endpoint()).end())

    assert asyncio.run(scenario()) == "done"


def test_several_coroutines_may_wait_for_one_future() -> None:
    async def scenario() -> list[int]:
        shared: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def wait() -> int:
            return await shared

        first, task, last = Running(wait()), asyncio.create_task(wait()), Running(wait())
        await asyncio.sleep(0)
        shared.set_result(1)
        return [await first.end(), await task, await last.end()]

    assert asyncio.run(scenario()) == [1, 1, 1]


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("waits", [0, 1])
def test_cancel_cancels_the_coroutine_at_any_time(steps: int, waits: int) -> None:
    async def scenario() -> Any:
        async def wait() -> str:
            try:
                for _ in range(waits):
                    await asyncio.sleep(0)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "cancelled"
            return "not reached"

        running = Running(wait())
        for _ in range(steps):
            await asyncio.sleep(0)
        for each in list(running.tasks):
            each.cancel()
        return await running.end()

    assert asyncio.run(scenario()) == "cancelled"


def test_failed_future_leaves_no_reference_cycle() -> None:
    async def scenario() -> int:
        async def fail() -> str:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.get_loop().call_soon(future.set_exception, ValueError("expected"))
            try:
                await future
            except ValueError:
                return "failed"
            finally:
                del future
            return "not reached"

        await Running(fail()).end()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                assert await Running(fail()).end() == "failed"
            await asyncio.sleep(0)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(scenario()) < 50
