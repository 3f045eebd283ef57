"""The scripts and styles of the API reference: Swagger UI, Redoc, and what shows them.

Swagger UI and Redoc come from the package fastapi-offline, of which nothing else is used. Knows no
route.
"""

import zlib
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.resources import files
from string import Template

_OWN = files("service.web") / "reference_pages"
_VIEWERS = files("fastapi_offline") / "static"
_FILES = {
    "description.js": _OWN,
    "docs.js": _OWN,
    "accessible_names.js": _OWN,
    "redoc.js": _OWN,
    "reference.css": _OWN,
    "redoc.standalone.js": _VIEWERS,
    "swagger-ui-bundle.js": _VIEWERS,
    "swagger-ui.css": _VIEWERS,
}
_MEDIA_TYPES = {"css": b"text/css; charset=utf-8", "js": b"text/javascript; charset=utf-8"}
_FOREIGN_LOGO, _NO_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,"
"""Redoc shows a picture from its maker's server, and nothing in its place if it does not load."""
_EDITION_DIGITS = 12
_PIECE_BYTES = 2**16
_GZIP_BITS = 16 + zlib.MAX_WBITS
"""zlib's way to ask for the format of gzip."""


@cache
def edition() -> str:
    """Return what distinguishes these files from those of other versions; it is in their URLs."""
    digest = sha256()
    for name in _FILES:
        for piece in _pieces(name):
            digest.update(piece)
    return digest.hexdigest()[:_EDITION_DIGITS]


def media_type(name: str) -> bytes:
    """Return the media type of a file."""
    return _MEDIA_TYPES[name.rpartition(".")[2]]


def content(name: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        KeyError: there is no such file.
    """
    return b"".join(_pieces(name))


@cache
def compressed(name: str) -> bytes:
    """Return the bytes of a file in gzip's format; all files together have .8 MB."""
    packer = zlib.compressobj(wbits=_GZIP_BITS)
    return b"".join([*map(packer.compress, _pieces(name)), packer.flush()])


def _pieces(name: str) -> Iterator[bytes]:
    """Yield a file piece by piece: whole files would stay in the process's heap."""
    tail, kept = b"", len(_FOREIGN_LOGO) - 1
    with (_FILES[name] / name).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            data = (tail + piece).replace(_FOREIGN_LOGO, _NO_LOGO)
            yield data[:-kept]
            tail = data[-kept:]
    yield tail


def page(name: str) -> str:
    """Return a page that loads some of the files, at URLs relative to its own."""
    return Template((_OWN / name).read_text(encoding="utf-8")).substitute(files=f"docs/{edition()}")
