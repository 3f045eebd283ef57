"""A request's body -> bytes, whole and within the limits. Knows no format of it.

A body that is short once it is unpacked is unpacked here; any other stays packed, for whoever has
the time.
"""

import asyncio
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Receive, Scope

from service.codecs.compression import IDENTITY, WINDOW_BITS, too_large, unpack_if_small
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from service.settings import ServiceSettings

WHOLE_BODY = "dropserve.body"
"""Where a request's scope has its body, if that was read with its head."""

_HEADERS = "dropserve.headers"
_DIGITS = 19  # of a number of bytes; Python refuses to read thousands


SMALL_BYTES = 2**16
"""Of a body that is read on the event loop, whatever is in it."""


class Body(NamedTuple):
    """A whole body."""

    data: bytes
    encoding: str = IDENTITY
    """A Content-Encoding: if it is another than `identity`, the data is still packed."""

    @property
    def is_small(self) -> bool:
        """Tell whether nothing in it can hold up the event loop."""
        return len(self.data) <= SMALL_BYTES and self.encoding == IDENTITY


class BodyReader:
    """Reads bodies within the configured limits of size and time."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._limit = settings.max_body_bytes
        self._seconds = settings.body_timeout_seconds

    async def read(self, request: Request) -> Body:
        """Return the body, which may be empty; a short one unpacked.

        Raises:
            UnsupportedMediaTypeError: a Content-Encoding other than gzip, deflate and identity.
            BodyTooLargeError, BodyTimeoutError, CompressionError, InvalidRequestError.
        """
        scope = request.scope
        encoding = _content_encoding(scope)
        data: bytes | None = scope.get(WHOLE_BODY)
        if data is None:
            declared = header(scope, b"content-length") or "0"
            if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > self._limit):
                raise too_large(self._limit)
            data = await self._arriving(request.receive)
        self._check_length(len(data))
        if encoding == IDENTITY:
            return Body(data)
        if len(data) <= SMALL_BYTES:
            unpacked = unpack_if_small(data, encoding, SMALL_BYTES)
            if unpacked is not None:
                self._check_length(len(unpacked))
                return Body(unpacked)
        return Body(data, encoding)

    async def read_small(self, request: Request) -> bytes:
        """Return a body of a request that has little to say; raises as `read`."""
        body = await self.read(request)
        if not body.is_small:
            raise BodyTooLargeError(
                f"The body is larger than {SMALL_BYTES:,} bytes, the most that is taken here; "
                "send less."
            )
        return body.data

    async def _arriving(self, receive: Receive) -> bytes:
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
            raise too_large(self._limit)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header, its lines joined if there are several; `name` in small letters."""
    headers: dict[bytes, str] | None = scope.get(_HEADERS)
    if headers is None:
        headers = index_headers(scope)
    return headers.get(name)


def index_headers(scope: Scope) -> dict[bytes, str]:
    """Note every header in the scope, where `header` finds it."""
    lines: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        lines.setdefault(name, []).append(value)
    headers = {name: str(b", ".join(values), "latin-1") for name, values in lines.items()}
    scope[_HEADERS] = headers
    return headers


def _content_encoding(scope: Scope) -> str:
    given = header(scope, b"content-encoding")
    if given is None:
        return IDENTITY
    encoding = given.strip().lower()
    if encoding not in (IDENTITY, *WINDOW_BITS):
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding!r} is not taken here; send the body uncompressed, or "
            "as gzip or deflate."
        )
    return encoding
