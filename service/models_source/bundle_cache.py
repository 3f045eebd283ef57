"""The local folder that bundles are fetched into: whose it is, its lock, and whole versions only.

Laid out as a models folder, NAME/VERSION/. A version is written as a draft and renamed, so whoever
serves from the folder sees all of it or nothing. Knows no source but its name.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from model.atomic_file_writing import write_whole
from model.bundle.bounded_reading import RejectedFileError, read_file
from model.bundle.store import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    flush_to_disk,
    list_models,
    list_versions,
    parse_manifest,
)
from model.errors import BundleError
from service.models_source.remote_bundles import SourceError

_SOURCE_FILE = ".source"
_LOCK_FILE = ".lock"
_DRAFTS_FOLDER = ".drafts"
_POLL_PREFIX = ".polled-"
_STALE_MARK_SECONDS = 86_400.0
_MAX_PLACE_BYTES = 64 * 2**10


class BundleCache:
    """The versions that were fetched. Whatever writes needs the lock, see `locked`."""

    def __init__(self, folder: Path, place: str) -> None:
        """Read nothing yet.

        place: the source's URL without credentials. A cache is of one source, for ever.
        """
        self.folder = folder
        self._place = place

    def why_unusable(self) -> str | None:
        """Return in one sentence why the folder cannot be the source's cache; None if it can.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            place = read_file(self.folder / _SOURCE_FILE, _MAX_PLACE_BYTES).decode().strip()
        except FileNotFoundError:
            if not list_models(self.folder):
                return None
            return (
                f"{self.folder} holds bundles that were not fetched; name another folder with "
                "--models-cache, so that none of them is replaced."
            )
        except (RejectedFileError, UnicodeDecodeError):
            place = "something else"
        if place == self._place:
            return None
        return (
            f"{self.folder} is the cache of {place}; name another folder with --models-cache, or "
            "remove that one."
        )

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Make the folder the source's cache, and yield whether the lock was free and is held.

        Raises:
            SourceError: the folder cannot be the cache of this source.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.folder / _LOCK_FILE, flags, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self._claim()
            yield True
        finally:
            os.close(descriptor)  # which ends the lock, too

    def _claim(self) -> None:
        """Record whose the cache is, and remove what a process left that has ended meanwhile."""
        problem = self.why_unusable()
        if problem is not None:
            raise SourceError(problem)
        shutil.rmtree(self.folder / _DRAFTS_FOLDER, ignore_errors=True)
        file = self.folder / _SOURCE_FILE
        if not file.exists():
            write_whole(file, f"{self._place}\n".encode())

    def versions(self) -> dict[str, list[int]]:
        """Return the fetched versions of every model, the highest first.

        Raises:
            OSError: the folder cannot be read.
        """
        return {name: list_versions(self.folder, name) for name in list_models(self.folder)}

    def manifest(self, name: str, version: int) -> bytes:
        """Return the manifest of a fetched version as it was published.

        Raises:
            OSError: it cannot be read.
        """
        return read_file(self._path(name, version) / MANIFEST_FILE, MAX_MANIFEST_BYTES)

    def has_manifest(self, name: str, version: int) -> bool:
        """Return whether a version was fetched and its manifest is not damaged.

        Raises:
            OSError: that cannot be read.
        """
        try:
            parse_manifest(self.manifest(name, version), MANIFEST_FILE)
        except (FileNotFoundError, NotADirectoryError, RejectedFileError, BundleError):
            return False
        return True

    @contextmanager
    def draft(self, name: str, version: int) -> Iterator[Path]:
        """Yield an empty folder, and make it the version when the block ends, flushed to the disk.

        It replaces a damaged one. If the block raises, nothing is left behind.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / _DRAFTS_FOLDER / f"{name}-{version}"
        path.mkdir(parents=True)
        try:
            yield path
            for folder in (*(each for each in path.rglob("*") if each.is_dir()), path):
                flush_to_disk(folder)
            target = self._path(name, version)
            target.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                self.remove(name, version)
            path.rename(target)
            flush_to_disk(target.parent)
            flush_to_disk(self.folder)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, name: str, version: int) -> None:
        """Remove a version, in one step for whoever lists the folder.

        Raises:
            OSError: the folder cannot be written.
        """
        drafts = self.folder / _DRAFTS_FOLDER
        drafts.mkdir(exist_ok=True)
        path = drafts / f"removed-{name}-{version}"
        self._path(name, version).rename(path)
        shutil.rmtree(path, ignore_errors=True)

    def polled_at(self, request: str) -> float:
        """Return when any process last found all that `request` asks for in the cache.

        The time is in seconds since 1970; 0: never.
        """
        try:
            return self._mark(request).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def mark_polled(self, request: str) -> float:
        """Record that all that `request` asks for is in the cache now; return the time."""
        now = time.time()
        mark = self._mark(request)
        mark.touch()
        os.utime(mark, (now, now))
        for other in self.folder.glob(f"{_POLL_PREFIX}*"):
            if now - other.stat().st_mtime > _STALE_MARK_SECONDS:
                other.unlink(missing_ok=True)
        return now

    def _mark(self, request: str) -> Path:
        return self.folder / f"{_POLL_PREFIX}{sha256(request.encode()).hexdigest()[:16]}"

    def _path(self, name: str, version: int) -> Path:
        return self.folder / name / str(version)
