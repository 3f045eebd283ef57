"""The progress of a run on stderr: a bar on a terminal, lines in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Counts the images that are done; a context manager."""

    def __init__(self, images: int, line_seconds: float = _LINE_SECONDS) -> None:
        """Show the bar, if stderr is a terminal.

        line_seconds: least time between two lines, if it is none.
        """
        self._bar = tqdm(total=images, unit="image", disable=None, smoothing=0.1)
        self._images = images
        self._done = 0
        self._line_seconds = line_seconds
        self._started = self._last = time.perf_counter()

    def __enter__(self) -> Self:
        """Return the progress."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def add(self, images: int) -> None:
        """Show that more images are done."""
        self._bar.update(images)
        self._done += images
        now = time.perf_counter()
        if self._bar.disable and now - self._last >= self._line_seconds:
            self._last = now
            rate = self._done / (now - self._started)
            sys.stderr.write(f"{self._done:,} of {self._images:,} images, {rate:,.1f} a second\n")
            sys.stderr.flush()
