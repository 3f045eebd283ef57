"""The handle of one scoring process: starts it, sends batches, receives their lines."""

import asyncio
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from model.errors import BundleError
from service.scoring.image_file import ImageReference
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import (
    ModelFacts,
    ScoredBatch,
    decode,
    encode,
    encode_batch,
)

_COMMAND = [sys.executable, "-P", "-m", "service.scoring.scoring_process_main"]
_ROOT = Path(__file__).parents[2]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_MAX_LINE_BYTES = 64 * 2**20
"""Of a reply; the longest one has the names of all classes."""


class BatchFailedError(Exception):
    """The process has ended before it replied, or could not score a batch; says why."""


class ScoringProcess:
    """A running scoring process, which replies in the order of the batches."""

    def __init__(self, process: asyncio.subprocess.Process, facts: ModelFacts) -> None:
        self._process = process
        self.facts = facts
        self._waiting: deque[asyncio.Future[ScoredBatch]] = deque()
        self._receiving = asyncio.create_task(self._receive_replies())

    @classmethod
    async def start(cls, settings: ScoreSettings, bundle: Path, processes: int) -> Self:
        """Start a process and wait until it has loaded the bundle.

        Raises:
            BundleError: the bundle, or the settings for it, cannot be used.
            BatchFailedError: the process has ended.
        """
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": _python_path()},
            limit=_MAX_LINE_BYTES,
        )
        try:
            content = await _load_bundle(process, settings, bundle, processes)
        except BaseException:
            await _kill(process)
            raise
        if "error" in content:
            await _kill(process)
            raise BundleError(content["error"])
        return cls(process, ModelFacts(**content))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it takes batches."""
        return not self._receiving.done()

    async def score(self, images: Sequence[ImageReference]) -> ScoredBatch:
        """Send a batch and wait for its lines; raises BatchFailedError."""
        if not self.is_alive:
            raise BatchFailedError("it has ended")
        reply: asyncio.Future[ScoredBatch] = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        assert self._process.stdin is not None
        self._process.stdin.write(encode_batch(images))
        return await reply

    async def close(self) -> None:
        """End the process, whether it has finished its batches or not."""
        self._receiving.cancel()
        await _kill(self._process)

    async def _receive_replies(self) -> None:
        """Pass each reply on to who waits for it; in the end nobody waits for one any more."""
        reason = "its process was ended"
        try:
            await self._read_replies()
            reason = f"its process ended with status {await self._process.wait()}"
        except Exception as error:  # where the next reply begins is not known
            reason = f"its reply cannot be read, {type(error).__name__}: {error}"
            await _kill(self._process)
        finally:
            while self._waiting:
                self._reply(BatchFailedError(reason))

    async def _read_replies(self) -> None:
        assert self._process.stdout is not None
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # killed while it wrote
            while line := await self._process.stdout.readline():
                content: dict[str, Any] = decode(line)
                if "failure" in content:
                    self._reply(BatchFailedError(content["failure"]))
                    continue
                lines = await self._process.stdout.readexactly(content["bytes"])
                self._reply(ScoredBatch(lines, content["errors"], content["abstentions"]))

    def _reply(self, result: ScoredBatch | BatchFailedError) -> None:
        reply = self._waiting.popleft()
        if reply.done():  # its caller was cancelled
            return
        if isinstance(result, ScoredBatch):
            reply.set_result(result)
        else:
            reply.set_exception(result)


async def _load_bundle(
    process: asyncio.subprocess.Process, settings: ScoreSettings, bundle: Path, processes: int
) -> dict[str, Any]:
    """Send the first message, and return the reply."""
    assert process.stdin is not None
    assert process.stdout is not None
    first = {"settings": settings.for_process(), "bundle": str(bundle), "processes": processes}
    process.stdin.write(encode(first))
    line = await process.stdout.readline()
    if not line:
        raise BatchFailedError(f"it ended at its start, status {await process.wait()}")
    content: dict[str, Any] = decode(line)
    return content


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _python_path() -> str:
    """Return the search path that finds this program from any folder."""
    return os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
