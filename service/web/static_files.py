"""Static files, kept compressed in memory: no thread, no disk and no lookup of types to serve one.

Knows no route.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from starlette.requests import Request
from starlette.responses import Response

from service.api.routes import RawResponse
from service.codecs.compression import choose_compressor
from service.http.request_body import header

_MEDIA_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_TAG_DIGITS = 16


@dataclass(frozen=True)
class StaticFile:
    """One file."""

    compressed: bytes
    """In gzip's format."""
    media_type: bytes
    tag: str
    """Its ETag. It is weak, since the file has it in every encoding (RFC 9110, 8.8.1)."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and compress a file; raises OSError."""
        content = path.read_bytes()
        digest = sha256(content).hexdigest()[:_TAG_DIGITS]
        compressed = gzip.compress(content, mtime=0)
        return cls(compressed, _MEDIA_TYPES[path.suffix], f'W/"{digest}"')

    def answer(self, request: Request) -> Response:
        """Answer with the file, or with 304 where the client has it; it asks each time."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.tag in (tag.strip() for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        if not accepts_gzip(request):
            return RawResponse(gzip.decompress(self.compressed), self.media_type, raw)
        return RawResponse(self.compressed, self.media_type, [*raw, (b"content-encoding", b"gzip")])


def read_files(folder: Path) -> Mapping[str, StaticFile]:
    """Read the files of a folder, by name; raises OSError."""
    return {path.name: StaticFile.read(path) for path in sorted(folder.iterdir())}


def accepts_gzip(request: Request) -> bool:
    """Return whether the client prefers a response in gzip's format."""
    chosen = choose_compressor(header(request.scope, b"accept-encoding") or "")
    return chosen is not None and chosen[0] == "gzip"
