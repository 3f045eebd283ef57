"""Which files are images, by name and first bytes. Decodes nothing."""

from pathlib import PurePath

from model.images.file_formats import FILE_SUFFIXES, file_format

_HIDDEN = (".", "@", "__MACOSX")
"""Beginnings of names that programs give to folders and files of their own."""


def has_image_suffix(name: str) -> bool:
    """Return whether a file with this name counts as an image, even if it turns out broken."""
    return PurePath(name).suffix.lower() in FILE_SUFFIXES


def begins_as_image(data: bytes) -> bool:
    """Return whether the first bytes of a file, `FIRST_BYTES` of them, are those of an image."""
    return file_format(data) is not None


def is_hidden(name: str) -> bool:
    """Return whether a folder or file belongs to a program: thumbnails, trash, resource forks."""
    return name.startswith(_HIDDEN) and name != ".."
