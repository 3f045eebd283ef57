"""The counts of the last 15 minutes, in intervals of 5 seconds, summed over the workers.

A ring holds the counts of one subject, such as a route. Rings are in memory, or in files that
several workers share, which outlive each worker. Knows no metric.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

import numpy as np

from service.observability.files_shared_by_workers import SharedFiles, shared_folder
from service.observability.route_counts import Counts

INTERVAL_SECONDS = 5
INTERVALS = 180
"""How many intervals a ring holds."""
Subject = tuple[str, ...]
"""What a ring counts: its kind, and names."""

_PREFIX = "history-"
_NUMBER_BYTES = 4
_IDLE_SECONDS = INTERVALS * INTERVAL_SECONDS


class HistoryRings:
    """Rings by subject.

    A ring is uint32 [INTERVALS, 1 + W]: each row is the number of an interval and its W counts, at
    the place that the number has modulo INTERVALS.
    """

    def __init__(self, folder: Path | None) -> None:
        """Hold nothing yet; folder: shared by the workers, None for a single process."""
        self._folder = folder
        failure = "the last minutes are not recorded"
        self._files = None if folder is None else SharedFiles(folder, failure)
        self._in_memory: dict[Subject, Counts] = {}

    @classmethod
    def of_service(cls) -> Self:
        """Keep them beside the metrics' files where there are several workers, else in memory."""
        return cls(shared_folder())

    def add(self, subject: Subject, interval: int, counts: Counts) -> bool:
        """Add to the counts of an interval; return whether that was possible now.

        It is not while another worker does so, and never waits for it: it may have been stopped.

        interval: its number, seconds since 1970 divided by INTERVAL_SECONDS.
        counts: uint32 [W]; a subject has the same W always.
        """
        place = interval % INTERVALS
        if self._files is None:
            ring = self._in_memory.setdefault(
                subject, np.zeros((INTERVALS, 1 + len(counts)), np.uint32)
            )
            ring[place] = _added(ring[place], interval, counts)
            return True
        size = _NUMBER_BYTES * (1 + len(counts))

        def add_to_row(file: int) -> None:
            data = os.pread(file, size, place * size)
            row = np.frombuffer(data.ljust(size, b"\0"), np.uint32)
            os.pwrite(file, _added(row, interval, counts).tobytes(), place * size)

        return self._files.change(_file_name(subject), add_to_row)

    def read(self, subject: Subject, last: int, width: int) -> Counts:
        """Return the counts of the INTERVALS intervals up to `last`, oldest first: uint32 [.., W].

        width: W.
        """
        ring = self._in_memory.get(subject)
        if self._folder is not None:
            ring = _read_file(self._folder / _file_name(subject), 1 + width)
        if ring is None:
            return np.zeros((INTERVALS, width), np.uint32)
        wanted = np.arange(last - INTERVALS + 1, last + 1, dtype=np.uint32)
        rows = ring[wanted % INTERVALS]
        counts: Counts = np.where((rows[:, 0] == wanted)[:, None], rows[:, 1:], np.uint32(0))
        return counts

    def subjects(self) -> Sequence[Subject]:
        """Return the subject of every ring."""
        if self._folder is None:
            return sorted(self._in_memory)
        names = (file.name for file in self._folder.glob(f"{_PREFIX}*"))
        return sorted(_subject(name) for name in names)

    def forget_idle(self, interval: int) -> None:
        """Remove the rings that nothing was added to in the INTERVALS intervals up to this one."""
        for subject, ring in list(self._in_memory.items()):
            if ring[:, 0].max() <= interval - INTERVALS:
                del self._in_memory[subject]
        if self._folder is not None:
            for file in self._folder.glob(f"{_PREFIX}*"):
                with suppress(OSError):  # another worker has removed it
                    if file.stat().st_mtime < time.time() - _IDLE_SECONDS:
                        file.unlink()


def _added(row: Counts, interval: int, counts: Counts) -> Counts:
    """Return a row with more counts; counts of an older interval in its place are dropped."""
    before = row[1:] if row[0] == interval else 0
    return np.concatenate([np.array([interval], np.uint32), before + counts])


def _read_file(file: Path, columns: int) -> Counts | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    size = _NUMBER_BYTES * INTERVALS * columns
    return np.frombuffer(data[:size].ljust(size, b"\0"), np.uint32).reshape(INTERVALS, columns)


def _file_name(subject: Subject) -> str:
    return _PREFIX + ",".join(quote(part, safe="") for part in subject)


def _subject(file_name: str) -> Subject:
    return tuple(unquote(part) for part in file_name.removeprefix(_PREFIX).split(","))
