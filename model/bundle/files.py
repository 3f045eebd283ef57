"""Files that others have put there, read whole, within a limit, and once. Knows no bundle.

What is not a regular file is refused: a symbolic link could lead anywhere, a FIFO would keep its
reader waiting, a device has no end.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_CHUNK_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: to open a FIFO would else wait for somebody who writes."""


class UnfitFileError(OSError):
    """There is something, but no regular file within the limit; `strerror` says what."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)


@contextmanager
def folder(path: Path) -> Iterator[int]:
    """Open a folder, through symbolic links if need be, and give its descriptor.

    Raises:
        OSError: it is not there, is no folder, or may not be read.
    """
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def chunks_in(folder: int, name: str, limit: int) -> Iterator[bytes]:
    """Read the file of the relative path `name` in an open folder, piece by piece.

    limit: most bytes that it may have.

    Raises:
        UnfitFileError: no regular file, a symbolic link on the way to it, or too many bytes.
        OSError: it is not there, or cannot be read.
    """
    *between, last = PurePosixPath(name).parts
    inside = os.dup(folder)
    try:
        for part in between:
            further = _open(part, _FOLDER | os.O_NOFOLLOW, inside)
            os.close(inside)
            inside = further
        descriptor = _open(last, _FILE | os.O_NOFOLLOW, inside)
    finally:
        os.close(inside)
    try:
        yield from _chunks(descriptor, limit)
    finally:
        os.close(descriptor)


def read_in(folder: int, name: str, limit: int) -> bytes:
    """Return the whole of a file; as `chunks_in`."""
    return b"".join(chunks_in(folder, name, limit))


def read(path: Path, limit: int) -> bytes:
    """Return the whole of a file of this service's own, which may be a symbolic link.

    Raises:
        UnfitFileError: no regular file, or more bytes than `limit`.
        OSError: it is not there, or cannot be read.
    """
    descriptor = os.open(path, _FILE)
    try:
        return b"".join(_chunks(descriptor, limit))
    finally:
        os.close(descriptor)


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or _is_link(name, folder):
            raise UnfitFileError("a symbolic link is not followed") from None
        if error.errno == errno.ENXIO:  # a socket
            raise UnfitFileError("it is no regular file") from None
        raise


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _chunks(descriptor: int, limit: int) -> Iterator[bytes]:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise UnfitFileError(os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise UnfitFileError("it is no regular file")
    left = limit
    if status.st_size > left:
        raise UnfitFileError(f"it is larger than {limit:,} bytes")
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:  # it has grown meanwhile
            raise UnfitFileError(f"it is larger than {limit:,} bytes")
        yield chunk
