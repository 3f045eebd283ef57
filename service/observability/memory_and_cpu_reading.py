"""The memory and processor time of this process and its child processes, read from /proc."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.observability.process_stat import stat_fields

_PROC = Path("/proc")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME, _RSS = 11, 12, 21
"""Places among `stat_fields`."""


class ProcessUsage:
    """What this process and its children use; zeros where there is no /proc, as on macOS."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._ticks: dict[str, int] = {}
        """Processor time of each process when it was last read."""
        self.read()

    def read(self) -> tuple[int, int]:
        """Return the resident memory, KiB, and the processor time since the last call, ms.

        The memory that processes share counts for each of them.
        """
        before, self._ticks = self._ticks, {}
        pages = spent = 0
        for pid in ("self", *self._children()):
            if fields := stat_fields(pid, self._proc):  # else a child has ended
                self._ticks[pid] = int(fields[_UTIME]) + int(fields[_STIME])
                spent += self._ticks[pid] - before.get(pid, 0)
                pages += int(fields[_RSS])
        return pages * _PAGE_KIB, spent * 1000 // _TICKS_PER_SECOND

    def _children(self) -> Iterator[str]:
        for file in (self._proc / "self" / "task").glob("*/children"):
            with suppress(OSError):  # a thread has ended
                yield from file.read_text().split()
