"""An image file that is to be scored: where it is, the name it has in the output, its bytes."""

import errno
import os
import stat
from dataclasses import dataclass

from model.errors import DropserveError, ImageTooLargeError
from service.scoring.zip_archives import read_member

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: without it, opening a FIFO would block until somebody writes to it."""


class UnreadableFileError(DropserveError):
    """The bytes of an image file cannot be read."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image file on disk, or a member of a zip archive."""

    path: str
    """Of the file or of the archive, as the file system has it."""
    name: str
    """What stands in the column `path`; no other image of a run has it."""
    member: int | None = None
    """Position of the file in the archive's directory; None: a file on disk."""
    problem: str | None = None
    """Why it cannot be read, a sentence; None: nothing is known against it."""

    def read(self, max_bytes: int) -> bytes:
        """Return the bytes of the file.

        Raises:
            UnreadableFileError: it does not exist, may not be read, or is no regular file.
            ImageTooLargeError: it has more than `max_bytes`.
        """
        if self.problem is not None:
            raise UnreadableFileError(self.problem)
        try:
            if self.member is not None:
                data = read_member(self.path, self.member, max_bytes)
            else:
                data = _read_file(self.path, max_bytes)
        except OSError as error:
            raise UnreadableFileError(unreadable(error)) from None
        if len(data) > max_bytes:
            raise ImageTooLargeError(
                f"The file has more than {max_bytes:,} bytes; make it smaller, or allow more with "
                "--max-file-bytes."
            )
        return data


def display_name(path: str) -> str:
    """Return a path in one line of valid Unicode: other bytes and control characters escaped.

    A backslash of the path stays one, so two paths of which one has an escape as its text get the
    same name; none that people give to files does.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def unreadable(error: OSError) -> str:
    """Describe why a file or folder cannot be read."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"It cannot be read ({reason}); check its path and permissions."


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _read_file(path: str, max_bytes: int) -> bytes:
    with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(max_bytes + 1)
