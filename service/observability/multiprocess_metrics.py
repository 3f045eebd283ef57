"""The memory-mapped files in which several workers share their metrics. Knows no metric.

prometheus_client grows its files with truncate, which reserves no space: on a full disk the first
write to a new page kills the process (SIGBUS). Here space is reserved before it is mapped. Where
there is none, a series stays in this worker's memory and is missing from the sums.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = structlog.stdlib.get_logger("service")

_INITIAL_BYTES = 1 << 16
_HEADER = struct.Struct("ii")
"""The number of bytes used, and four bytes of padding."""
_SAMPLE = struct.Struct("dd")
"""A value and its timestamp."""


class ReservedMmapedDict(MmapedDict):
    """prometheus_client's MmapedDict with every page of its file reserved on the disk."""

    _has_warned = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Open the file, created if missing; without space for it, keep all series in memory."""
        self._in_memory: dict[str, tuple[float, float]] = {}
        """The series for which there was no space: their value and timestamp."""
        if read_mode:
            super().__init__(filename, read_mode=True)  # type: ignore[no-untyped-call]
            return
        try:
            _create_if_missing(Path(filename))
            super().__init__(filename)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            self._f: Any = None
            self._m: Any = None
            self._used = self._capacity = 0
            self._positions: dict[str, int] = {}
            self._warn_once(error)

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a series' value and timestamp."""
        if key not in self._positions and key not in self._in_memory:
            self._init_value(key)
        if key in self._in_memory:
            return self._in_memory[key]
        return _SAMPLE.unpack_from(self._m, self._positions[key])

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a series' value and timestamp."""
        if key not in self._positions and key not in self._in_memory:
            self._init_value(key)
        if key in self._in_memory:
            self._in_memory[key] = value, timestamp
            return
        position = self._positions[key]
        self._m[position : position + _SAMPLE.size] = _SAMPLE.pack(value, timestamp)

    def _init_value(self, key: str) -> None:
        try:
            self._reserve(len(key.encode()) + 32)
        except (OSError, ValueError) as error:
            self._in_memory[key] = 0.0, 0.0
            self._warn_once(error)
            return
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _reserve(self, size: int) -> None:
        """Make room for an entry of `size` bytes; file and map grow together, or neither does."""
        if self._f is None:
            raise OSError("there is no file")
        capacity = self._capacity
        while self._used + size > capacity:
            capacity *= 2
        if capacity > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
            self._m = mmap.mmap(self._f.fileno(), capacity)
            self._capacity = capacity

    @classmethod
    def _warn_once(cls, error: Exception) -> None:
        """Log, once for each process, that some metrics stay in this process."""
        if not cls._has_warned:
            cls._has_warned = True
            logger.warning(
                "metrics of this worker are missing from the sums",
                reason=f"{error}; free space in the temporary folder, or name another with TMPDIR",
            )

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._f is not None:
            super().close()  # type: ignore[no-untyped-call]


def install() -> None:
    """Make prometheus_client use `ReservedMmapedDict` for every file that it opens from now on."""
    values.MmapedDict = ReservedMmapedDict  # type: ignore[attr-defined]


def _create_if_missing(file: Path) -> None:
    """Create a whole file in one step, so that no process reads a half-written one."""
    if file.exists():
        return
    draft = file.with_name(f"{file.name}.draft")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _INITIAL_BYTES)
        os.pwrite(descriptor, _HEADER.pack(8, 0), 0)
        draft.rename(file)
    except OSError:
        draft.unlink()
        raise
    finally:
        os.close(descriptor)
