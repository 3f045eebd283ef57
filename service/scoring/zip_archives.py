"""Zip archives of images, which somebody else may have made: listed and read within limits.

Nothing is extracted to disk, so the names of members lead nowhere. Archives inside archives are
not opened.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from model.errors import DropserveError, ImageTooLargeError

_MAX_DIRECTORY_BYTES = 64 * 2**20
"""Size limit of an archive's directory: about half a million members."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Other methods let an archive choose how much memory unpacking takes."""
_ENCRYPTED = 0x1


class ZipArchiveError(DropserveError):
    """A zip archive, or a member of it, cannot be read."""


class _BoundedFile(io.FileIO):
    """A file of which no single read may be larger than the largest directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes; zipfile reads a whole directory at once."""
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size) or b""

    def __del__(self) -> None:
        """Close the file with the archive that was the last to use it."""
        self.close()


def list_members(path: Path) -> Iterator[tuple[int, str]]:
    """Yield position and name of each file in an archive; folders are left out.

    Raises:
        ZipArchiveError: the archive is damaged, or its directory is too large.
        OSError: it cannot be read.
    """
    for position, member in enumerate(_open_archive(str(path)).infolist()):
        if not member.is_dir():
            yield position, member.filename


def first_bytes(path: Path, position: int, size: int) -> bytes:
    """Return the first bytes of the member at a position; none if it cannot be read."""
    archive = _open_archive(str(path))
    try:
        return _read(archive, archive.infolist()[position], size)
    except (ZipArchiveError, OSError):
        return b""


def read_member(path: str, position: int, max_bytes: int) -> bytes:
    """Unpack the member at a position into memory.

    Raises:
        ZipArchiveError: it is damaged, encrypted, or packed in an unusual way.
        ImageTooLargeError: it has more than `max_bytes`, unpacked.
        OSError: the archive cannot be read.
    """
    archive = _open_archive(path)
    member = archive.infolist()[position]
    if member.file_size > max_bytes:
        raise ImageTooLargeError(
            f"The file has {member.file_size:,} bytes, more than the {max_bytes:,} allowed; make "
            "it smaller, or allow more with --max-file-bytes."
        )
    return _read(archive, member, max_bytes + 1)


@lru_cache(maxsize=1)
def _open_archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_BoundedFile(path))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ZipArchiveError(
            f"{path} is not a zip archive that can be read ({_reason(error)}); pack it again."
        ) from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> bytes:
    """Return at most `size` bytes of a member."""
    if member.flag_bits & _ENCRYPTED:
        raise ZipArchiveError("The file is encrypted in its archive; pack it without a password.")
    if member.compress_type not in _METHODS:
        raise ZipArchiveError(
            "The file is packed with an unusual method; pack the archive with deflate, as usual."
        )
    try:
        with archive.open(member) as file:
            return file.read(size)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise ZipArchiveError(
            f"The file is damaged in its archive ({_reason(error)}); pack it again."
        ) from None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
