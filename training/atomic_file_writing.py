"""Writes a file so that its path has the old content or the new one, whole. Knows no format."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Replace the content of `file`, or raise OSError and leave it as it was."""
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
