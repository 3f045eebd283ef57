"""Writes a file so that its path has the old content or the new one, whole. Knows no format."""

import os
import secrets
from pathlib import Path


def write_whole(file: Path, content: bytes | memoryview, *, flush: bool = True) -> None:
    """Replace the content of `file`, or raise OSError and leave it as it was.

    flush: wait for the disk, so that a power cut leaves a whole file, too. A cache that notices
        damage can save these milliseconds.
    """
    # Not the process's number, which two containers that share a folder may both have.
    draft = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            if flush:
                stream.flush()
                os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_new(file: Path, content: bytes) -> None:
    """Write a file that does not exist, or raise OSError: FileExistsError if it does by now."""
    file.open("xb").close()
    try:
        write_whole(file, content)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
