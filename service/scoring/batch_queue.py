"""Divides images into batches that take about a second each, whatever the network takes."""

from collections.abc import Iterator, Sequence

from service.scoring.image_file import ImageReference

_FIRST_SIZE = 4
_SHORT_SECONDS, _LONG_SECONDS = 0.5, 2.0
"""Lines and progress appear as often, and an interruption loses the work of so long."""


class BatchQueue:
    """Batches of images, in order; their size follows how long the batches before took."""

    def __init__(self, images: Sequence[ImageReference], largest: int) -> None:
        self._images = images
        self._largest = largest
        self._size = min(_FIRST_SIZE, largest)

    def __iter__(self) -> Iterator[Sequence[ImageReference]]:
        """Yield the batches, each with the size that is right when it is asked for."""
        start = 0
        while start < len(self._images):
            batch = self._images[start : start + self._size]
            start += len(batch)
            yield batch

    def note(self, images: int, seconds: float) -> None:
        """Let the next batches follow one that took so long."""
        if images == self._size:  # a smaller one says little, an older one was noted by others
            if seconds < _SHORT_SECONDS:
                self._size = min(2 * self._size, self._largest)
            elif seconds > _LONG_SECONDS:
                self._size = max(1, self._size // 2)
