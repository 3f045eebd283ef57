"""Reads a request's body within the limits of size and time. Knows no format.

A body that is small when decompressed is decompressed here, on the event loop. A larger one stays
compressed; a sandbox process decompresses it.
"""

import asyncio
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Receive, Scope

from service.codecs.compression import (
    IDENTITY,
    WINDOW_BITS,
    body_too_large_error,
    decompress_up_to,
    is_declared_too_large,
)
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from service.settings import ServiceSettings
from service.tracing.request_trace import mark_body_read

WHOLE_BODY = "dropserve.body"
"""Key of the ASGI scope: the body, if it was read together with the head."""

_HEADERS = "dropserve.headers"
_GZIP_ALIAS = "x-gzip"
"""Another name of gzip (RFC 9110, 8.4.1.3)."""

MAX_INLINE_BODY_BYTES = 2**16
"""Bodies up to this size may be parsed on the event loop, whatever they contain."""


class Body(NamedTuple):
    """The whole body of a request."""

    data: bytes
    encoding: str = IDENTITY
    """The Content-Encoding of `data`; `identity` if it is not compressed."""

    @property
    def is_small(self) -> bool:
        """Whether the body can be parsed inline, without blocking the event loop for long."""
        return len(self.data) <= MAX_INLINE_BODY_BYTES and self.encoding == IDENTITY


class BodyReader:
    """Reads bodies within the configured limits of size and time."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._limit = settings.max_body_bytes
        self._seconds = settings.body_timeout_seconds

    async def read(self, request: Request) -> Body:
        """Return the body, which may be empty; a small one is decompressed.

        Raises:
            UnsupportedMediaTypeError: the Content-Encoding is not gzip, deflate or identity.
            BodyTooLargeError, BodyTimeoutError, CompressionError, InvalidRequestError.
        """
        scope = request.scope
        encoding = _content_encoding(scope)
        data: bytes | None = scope.get(WHOLE_BODY)
        if data is None:
            if is_declared_too_large(header(scope, b"content-length") or "0", self._limit):
                raise body_too_large_error(self._limit)
            data = await self._receive_all(request.receive)
        mark_body_read()
        self._check_length(len(data))
        if encoding == IDENTITY:
            return Body(data)
        if len(data) <= MAX_INLINE_BODY_BYTES:
            unpacked = decompress_up_to(data, encoding, MAX_INLINE_BODY_BYTES)
            if unpacked is not None:
                self._check_length(len(unpacked))
                return Body(unpacked)
        return Body(data, encoding)

    async def read_small(self, request: Request, limit: int = MAX_INLINE_BODY_BYTES) -> bytes:
        """Return the body of a request that never needs a larger one; raises as `read` does."""
        body = await self.read(request)
        if len(body.data) > limit or body.encoding != IDENTITY:
            raise BodyTooLargeError(
                f"The body is larger than {limit:,} bytes, the most that is taken here; send less."
            )
        return body.data

    async def _receive_all(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(self._seconds):
                message = await receive()
                while message["type"] == "http.request":
                    pieces.append(message.get("body", b""))
                    length += len(pieces[-1])
                    self._check_length(length)
                    if not message.get("more_body"):
                        return b"".join(pieces)
                    message = await receive()
        except TimeoutError:
            raise BodyTimeoutError(
                f"The body did not arrive within {self._seconds:g} seconds; "
                "send it faster or smaller."
            ) from None
        raise InvalidRequestError("The client hung up before its body was whole.")

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise body_too_large_error(self._limit)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's value, several lines joined with commas; `name` is lower-case."""
    headers: dict[bytes, str] | None = scope.get(_HEADERS)
    if headers is None:
        headers = index_headers(scope)
    return headers.get(name)


def index_headers(scope: Scope) -> dict[bytes, str]:
    """Store every header in the scope, where `header` finds it, and return them."""
    lines: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        lines.setdefault(name, []).append(value)
    headers = {name: str(b", ".join(values), "latin-1") for name, values in lines.items()}
    scope[_HEADERS] = headers
    return headers


def _content_encoding(scope: Scope) -> str:
    value = header(scope, b"content-encoding")
    if value is None:
        return IDENTITY
    encoding = value.strip().lower()
    if encoding == _GZIP_ALIAS:
        return "gzip"
    if encoding not in (IDENTITY, *WINDOW_BITS):
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding!r} is not taken here; send the body uncompressed, or "
            "as gzip or deflate."
        )
    return encoding
