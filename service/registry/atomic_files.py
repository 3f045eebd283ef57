"""Writes whole files into folders that several processes and hosts share.

A file is written under a draft's name, and only then given its own: no reader sees half of one.
Drafts are named after host and process, since processes of two hosts may have the same number.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.registry.process_identity import ProcessIdentity, this_process


@contextmanager
def draft(file: Path, text: str, *, is_lasting: bool = True) -> Iterator[Path]:
    """Write a draft of a file, and yield its path; what is left of it is removed at the end.

    is_lasting: whether it is brought to the disk, so that it outlives a power failure.

    Raises:
        OSError: the folder cannot be written.
    """
    path = file.with_name(f".{file.name}.{this_process().name}.{threading.get_native_id()}")
    try:
        with path.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if is_lasting:
                os.fsync(stream.fileno())
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write(file: Path, text: str, *, is_lasting: bool = True) -> None:
    """Write a file, or replace it; is_lasting: as in `draft`.

    Raises:
        OSError: the folder cannot be written.
    """
    with draft(file, text, is_lasting=is_lasting) as path:
        path.replace(file)
    if is_lasting:
        sync_folder(file.parent)


def create(file: Path, text: str) -> bool:
    """Write a file unless it exists; return whether it did not.

    Raises:
        OSError: the folder cannot be written, or its file system has no hard links.
    """
    with draft(file, text) as path:
        try:
            os.link(path, file)
        except FileExistsError:
            return False
    sync_folder(file.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_drafts(folder: Path, writer: ProcessIdentity) -> None:
    """Remove what a process that has ended left unfinished."""
    for path in folder.glob(f".*.{writer.name}.*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
