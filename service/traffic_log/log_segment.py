"""One segment of a traffic log: a file of lines, and a folder with the images that they name.

While a process writes a segment, its lines are in NAME.jsonl.part, which the process holds locked.
Finishing it, the rotation, cuts what is no whole line, waits for the disk and renames it to
NAME.jsonl. If the process is killed, the next one finishes the segment.
"""

import fcntl
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

LINES, PART, DRAFT, IMAGES = ".jsonl", ".jsonl.part", ".jsonl.draft", ".images"
PREFIX = "traffic-"
_BLOCK_BYTES = 4096
_DRAFT_SECONDS = 60.0
"""A draft that is older was left by a process that was killed between creating and locking it."""


class LogSegment:
    """A segment that this process writes. Only one thread may use it."""

    def __init__(self, folder: Path, stem: str, descriptor: int) -> None:
        """Take a locked part; see `create` and `abandoned`."""
        self._folder = folder
        self.stem = stem
        self._descriptor = descriptor
        self.line_bytes = os.fstat(descriptor).st_size
        """Of whole lines; what the file has beyond them is no whole line."""
        self._image_bytes = 0
        self.digests: set[str] = set()
        """Of the images that it has."""
        self.began = time.monotonic()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Create an empty segment; raises OSError."""
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        stem = f"{PREFIX}{moment}-{os.getpid()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        draft = folder / f"{stem}{DRAFT}"
        descriptor = os.open(draft, flags, 0o600)
        try:
            # Locked before it is named a part, or else another process would finish it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(folder / f"{stem}{PART}")
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return cls(folder, stem, descriptor)

    @classmethod
    def abandoned(cls, folder: Path, stem: str) -> Self | None:
        """Take over the segment of a process that has ended; None: a process writes it.

        Raises:
            OSError: it cannot be opened.
        """
        part = folder / f"{stem}{PART}"
        descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_named_so = os.path.samestat(os.fstat(descriptor), part.stat())
        except (BlockingIOError, FileNotFoundError):
            is_named_so = False
        except OSError:
            os.close(descriptor)
            raise
        if not is_named_so:  # another process has just finished it
            os.close(descriptor)
            return None
        segment = cls(folder, stem, descriptor)
        segment.line_bytes = _end_of_last_line(descriptor)
        return segment

    @property
    def size(self) -> int:
        """The bytes of its files on the disk."""
        return blocks(self.line_bytes) + self._image_bytes

    @property
    def images_folder(self) -> Path:
        """Where its images are; it may not exist."""
        return self._folder / f"{self.stem}{IMAGES}"

    def append(self, lines: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: the disk is full, for example; then none of them counts as written.
        """
        rest, position = memoryview(lines), self.line_bytes
        while rest:
            written = os.pwrite(self._descriptor, rest, position)
            rest, position = rest[written:], position + written
        self.line_bytes = position

    def count_image(self, length: int) -> None:
        """Count a file of `length` bytes in the images' folder."""
        self._image_bytes += blocks(length)

    def finish(self) -> None:
        """Rotate: all lines are on the disk, and none is cut, once this has returned.

        A segment without a line is removed, with its images.

        Raises:
            OSError: that is not certain; the next process finishes the segment.
        """
        try:
            os.ftruncate(self._descriptor, self.line_bytes)
            part = self._folder / f"{self.stem}{PART}"
            if self.line_bytes:
                os.fsync(self._descriptor)
                part.rename(self._folder / f"{self.stem}{LINES}")
            else:
                part.unlink()
                shutil.rmtree(self.images_folder, ignore_errors=True)
            _sync(self._folder)
        finally:
            os.close(self._descriptor)


def blocks(length: int) -> int:
    """Return what a file of `length` bytes takes on the disk."""
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES


def remove_old_draft(path: Path) -> None:
    """Remove a draft that nobody will rename any more; raises OSError."""
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > _DRAFT_SECONDS:
            path.unlink()


def _end_of_last_line(descriptor: int) -> int:
    """Return the length of a file without what follows its last line break."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
