"""Names the format of a file by its content, whatever its name says.

Decodes no pixels.
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

from model.images import file_formats

_NOT_IMAGES = {"PDF", "MPEG"}
"""What Pillow opens or names, but nobody would call an image."""


def image_format(file: BinaryIO) -> str | None:
    """Return the name of the image format of a file's content, None if it is no image.

    Reads little more than the header. Formats that the decoder does not take, such as PSD, are
    named too.
    """
    head = file.read(file_formats.FIRST_BYTES)
    file.seek(0)
    known = file_formats.file_format(head)
    if known is not None:
        return known
    if _is_svg(head):
        return "SVG"
    try:
        with Image.open(file) as image:
            return None if image.format in _NOT_IMAGES else image.format
    except Image.DecompressionBombError:
        return "image"
    except Exception:  # plugins raise many kinds for a header that they cannot read
        return None


def _is_svg(head: bytes) -> bool:
    """Return whether a text is an SVG, and not a page that has one."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text)


def file_format(path: Path) -> str | None:
    """Return the name of a file's image format; None if it is no image or cannot be read."""
    try:
        with path.open("rb") as file:
            return image_format(file)
    except OSError:
        return None
