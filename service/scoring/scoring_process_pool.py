"""The scoring processes: batches in any order, and what a process that has ended leaves undone."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from model.errors import BundleError
from service.scoring.image_file import ImageReference
from service.scoring.result_lines import LineLayout
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process import BatchFailedError, ScoringProcess
from service.scoring.scoring_process_messages import ScoredBatch

LANES = 2
"""Batches of one process at once: one in the network, one that is read and decoded."""


class ScoringProcessPool:
    """Scoring processes of one bundle; a context manager, which ends them."""

    def __init__(
        self, settings: ScoreSettings, bundle: Path, processes: int, first: ScoringProcess
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._processes = processes
        self.running = [first]
        """The processes by their numbers."""
        self._starting = [asyncio.Lock() for _ in range(processes)]
        self._alone = asyncio.Lock()
        self.facts = first.facts
        """What the bundle is."""
        self._layout = LineLayout.of(settings, first.facts.class_names)

    @classmethod
    async def open(cls, settings: ScoreSettings, bundle: Path, processes: int) -> Self:
        """Start the first process, which loads the bundle.

        Raises:
            BundleError: the bundle, or the settings for it, cannot be used.
        """
        return cls(settings, bundle, processes, await _start(settings, bundle, processes))

    async def __aenter__(self) -> Self:
        """Return the pool."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all processes."""
        await asyncio.gather(*[each.close() for each in self.running])

    async def start_others(self, count: int) -> None:
        """Start processes until there are `count`."""
        more = range(min(count, self._processes) - len(self.running))
        results = await asyncio.gather(*[self._add() for _ in more], return_exceptions=True)
        for error in filter(None, results):
            raise error

    async def _add(self) -> None:
        self.running.append(await self._start())

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self.running)

    async def score(self, number: int, images: Sequence[ImageReference]) -> ScoredBatch:
        """Score a batch with the process of this number.

        If the process ends or fails, its images are tried each alone, and those that fail again
        get an error.
        """
        with suppress(BatchFailedError):
            return await (await self._process(number)).score(images)
        return await self._score_alone(images)

    async def _process(self, number: int) -> ScoringProcess:
        async with self._starting[number]:
            if not self.running[number].is_alive:
                self.running[number] = await self._start()
            return self.running[number]

    async def _score_alone(self, images: Sequence[ImageReference]) -> ScoredBatch:
        """Score each image alone in a process that nothing else uses."""
        results: list[ScoredBatch] = []
        process: ScoringProcess | None = None
        async with self._alone:
            try:
                for image in images:
                    if process is None or not process.is_alive:
                        process = await self._start()
                    try:
                        results.append(await process.score([image]))
                    except BatchFailedError as error:
                        sentence = f"It cannot be scored ({error}); try it again alone."
                        line = self._layout.error(image.name, sentence)
                        results.append(ScoredBatch(line, errors=1, abstentions=0))
            finally:
                if process is not None:
                    await process.close()
        return ScoredBatch(
            b"".join(each.lines for each in results),
            sum(each.errors for each in results),
            sum(each.abstentions for each in results),
        )

    async def _start(self) -> ScoringProcess:
        return await _start(self._settings, self._bundle, self._processes)


async def _start(settings: ScoreSettings, bundle: Path, processes: int) -> ScoringProcess:
    try:
        return await ScoringProcess.start(settings, bundle, processes)
    except BatchFailedError as error:
        raise BundleError(
            f"A process that scores images cannot run ({error}); free memory, or use fewer "
            "--processes."
        ) from None
