"""Safe reading of regular files that somebody else wrote, within a size limit. Knows no bundle.

Everything but a regular file is refused: a symbolic link could point anywhere, a FIFO would block
its reader, a device has no end.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_CHUNK_BYTES = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: without it, opening a FIFO would block until somebody writes to it."""


class RejectedFileError(OSError):
    """The path is not a regular file within the size limit; `strerror` has the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Open a folder and yield its descriptor; `path` may be a symbolic link.

    Raises:
        OSError: the path does not exist, is not a folder, or may not be read.
    """
    descriptor = os.open(path, _FOLDER_FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_chunks_at(folder: int, name: str, limit: int) -> Iterator[bytes]:
    """Read a file in an open folder chunk by chunk.

    Args:
        folder: descriptor from `open_folder`.
        name: path of the file relative to the folder.
        limit: largest size of the file in bytes.

    Raises:
        RejectedFileError: not a regular file, a symbolic link on its path, or too many bytes.
        OSError: the file does not exist, or cannot be read.
    """
    *parents, last = PurePosixPath(name).parts
    parent = os.dup(folder)
    try:
        for part in parents:
            child = _open_at(part, _FOLDER_FLAGS | os.O_NOFOLLOW, parent)
            os.close(parent)
            parent = child
        descriptor = _open_at(last, _FILE_FLAGS | os.O_NOFOLLOW, parent)
    finally:
        os.close(parent)
    try:
        yield from _read_chunks(descriptor, limit)
    finally:
        os.close(descriptor)


def read_file_at(folder: int, name: str, limit: int) -> bytes:
    """Return the content of a file in an open folder; arguments and errors as `read_chunks_at`."""
    return b"".join(read_chunks_at(folder, name, limit))


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a file of the service's own, which may be a symbolic link.

    Raises:
        RejectedFileError: not a regular file, or more bytes than `limit`.
        OSError: the file does not exist, or cannot be read.
    """
    descriptor = os.open(path, _FILE_FLAGS)
    try:
        return b"".join(_read_chunks(descriptor, limit))
    finally:
        os.close(descriptor)


def _open_at(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or _is_link(name, folder):
            raise RejectedFileError("a symbolic link is not followed") from None
        if error.errno == errno.ENXIO:  # a socket
            raise RejectedFileError("it is no regular file") from None
        raise


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _read_chunks(descriptor: int, limit: int) -> Iterator[bytes]:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise RejectedFileError(os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise RejectedFileError("it is no regular file")
    remaining = limit
    if status.st_size > remaining:
        raise RejectedFileError(f"it is larger than {limit:,} bytes")
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        remaining -= len(chunk)
        if remaining < 0:  # the file has grown meanwhile
            raise RejectedFileError(f"it is larger than {limit:,} bytes")
        yield chunk
