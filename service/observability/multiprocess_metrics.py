"""Where the figures of several workers lie: memory-mapped files of which no byte can be missing.

prometheus_client grows its files by truncate, which reserves nothing: on a full disk the first
write to a new page kills the process (SIGBUS). Here space is reserved first; where there is none,
a series stays in this worker's memory, and out of the sums. Knows no metric.
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

_FIRST_BYTES = 1 << 16
_HEADER = struct.Struct("ii")
"""How many bytes are used, and four more."""
_SAMPLE = struct.Struct("dd")


class ReservedMmapedDict(MmapedDict):
    """prometheus_client's own, of which every page has its place on the disk."""

    _has_said = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Make the file, or find it; without space for it, keep everything in memory."""
        self._alone: dict[str, tuple[float, float]] = {}
        if read_mode:
            super().__init__(filename, read_mode=True)  # type: ignore[no-untyped-call]
            return
        try:
            _make(Path(filename))
            super().__init__(filename)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            self._f: Any = None
            self._m: Any = None
            self._used = self._capacity = 0
            self._positions: dict[str, int] = {}
            self._say(error)

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a series' value and time."""
        if key not in self._positions and key not in self._alone:
            self._init_value(key)
        if key in self._alone:
            return self._alone[key]
        return _SAMPLE.unpack_from(self._m, self._positions[key])

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Give a series a value and a time."""
        if key not in self._positions and key not in self._alone:
            self._init_value(key)
        if key in self._alone:
            self._alone[key] = value, timestamp
            return
        place = self._positions[key]
        self._m[place : place + _SAMPLE.size] = _SAMPLE.pack(value, timestamp)

    def _init_value(self, key: str) -> None:
        try:
            self._reserve(len(key.encode()) + 32)
        except (OSError, ValueError) as error:
            self._alone[key] = 0.0, 0.0
            self._say(error)
            return
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _reserve(self, more: int) -> None:
        """Make room for an entry; the file and the map grow together, or neither does."""
        if self._f is None:
            raise OSError("there is no file")
        capacity = self._capacity
        while self._used + more > capacity:
            capacity *= 2
        if capacity > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
            self._m = mmap.mmap(self._f.fileno(), capacity)
            self._capacity = capacity

    @classmethod
    def _say(cls, error: Exception) -> None:
        """Log, once a process, that figures stay its own."""
        if not cls._has_said:
            cls._has_said = True
            logger.warning(
                "figures of this worker are not summed with the others'",
                reason=f"{error}; free space in the temporary folder, or name another with TMPDIR",
            )

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._f is not None:
            super().close()  # type: ignore[no-untyped-call]


def install() -> None:
    """Let prometheus_client use it for every file that it makes from now on."""
    values.MmapedDict = ReservedMmapedDict  # type: ignore[attr-defined]


def _make(file: Path) -> None:
    """Make a whole file in one step, so that nobody reads one that is being made."""
    if file.exists():
        return
    draft = file.with_name(f"{file.name}.draft")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _FIRST_BYTES)
        os.pwrite(descriptor, _HEADER.pack(8, 0), 0)
        draft.rename(file)
    except OSError:
        draft.unlink()
        raise
    finally:
        os.close(descriptor)
