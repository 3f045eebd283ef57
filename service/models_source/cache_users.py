"""What the processes that share a cache want of it: each says so in a file that it holds locked.

The kernel ends the lock of a process that dies, and then its file counts no longer; no clock of
another host has to be trusted.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.models_source.wanted_bundles import Wanted

_PREFIX = ".user-"
_MAX_BYTES = 16 * 2**20
_UNKNOWN = Wanted(newest=0, may_remove=False)


class CacheUsers:
    """The processes that use one cache."""

    def __init__(self, folder: Path) -> None:
        """Read and write nothing yet; folder: the cache."""
        self._folder = folder
        self._file = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_closed = False

    def announce(self, wanted: Wanted) -> None:
        """Say what this process wants from now on.

        Raises:
            OSError: the cache cannot be written, or has no locks.
        """
        text = wanted.model_dump_json().encode()
        with self._lock:
            if self._is_closed:
                return
            if self._descriptor is None:
                self._descriptor = self._create()
            # A reader that finds half of it lets everything stay.
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))

    def others(self) -> Sequence[Wanted]:
        """Return what the other processes want that live. The caller holds the cache's lock.

        Raises:
            OSError: the cache cannot be read or written.
        """
        files = [each for each in self._folder.glob(f"{_PREFIX}*") if each != self._file]
        found = [_read(each) for each in files]
        return [each for each in found if each is not None]

    def close(self) -> None:
        """Want nothing any more."""
        with self._lock:
            self._is_closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _create(self) -> int:
        """Create the file and lock it before others find it."""
        draft = self._file.with_name(f".draft{self._file.name}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(draft, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            draft.rename(self._file)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return descriptor


def _read(file: Path) -> Wanted | None:
    """Return what another process wants; remove its file and return None if it has ended."""
    with file.open("r+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = stream.read(_MAX_BYTES)
        else:
            file.unlink()
            return None
    try:
        return Wanted.model_validate_json(text)
    except ValidationError:
        return _UNKNOWN
