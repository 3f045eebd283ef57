"""Writes the lines of batches in the order of the batches, whichever is done first."""

import asyncio

from service.scoring.output_file import OutputFile
from service.scoring.progress import Progress
from service.scoring.run_outcome import Outcome
from service.scoring.scoring_process_messages import ScoredBatch


class OrderedWriter:
    """Keeps the batches that are done before an earlier one is."""

    def __init__(self, file: OutputFile, outcome: Outcome, progress: Progress, ahead: int) -> None:
        self._file = file
        self._outcome = outcome
        self._progress = progress
        self._ahead = ahead
        self._done: dict[int, tuple[ScoredBatch, int]] = {}
        self._next = 0
        self._advanced = asyncio.Condition()

    async def wait_for_room(self, index: int) -> None:
        """Wait until so few batches are ahead of the next line that this one may begin."""
        async with self._advanced:
            await self._advanced.wait_for(lambda: index < self._next + self._ahead)

    async def write(self, index: int, batch: ScoredBatch, images: int) -> None:
        """Write a batch, and those that waited for it; raises OutputError."""
        self._done[index] = batch, images
        async with self._advanced:
            while self._next in self._done:
                batch, images = self._done.pop(self._next)
                self._file.append(batch.lines)
                self._outcome.add(batch, images)
                self._progress.add(images)
                self._next += 1
            self._advanced.notify_all()
