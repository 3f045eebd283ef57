"""A request's body -> bytes, whole, decompressed and within the limits. Knows no format of it."""

import asyncio
import zlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Receive, Scope

from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    CompressionError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from service.settings import ServiceSettings

WHOLE_BODY = "dropserve.body"
"""Where a request's scope has its body, if that was read with its head."""

_HEADERS = "dropserve.headers"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # RFC 1952, RFC 1950
_FASTEST = 1
_DIGITS = 19  # of a number of bytes; Python refuses to read thousands


class BodyReader:
    """Reads bodies within the configured limits of size and time."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._limit = settings.max_body_bytes
        self._seconds = settings.body_timeout_seconds

    async def read(self, request: Request) -> bytes:
        """Return the body, which may be empty; both it and what it unpacks to are limited.

        Raises:
            UnsupportedMediaTypeError: a Content-Encoding other than gzip, deflate and identity.
            BodyTooLargeError, BodyTimeoutError, CompressionError, InvalidRequestError.
        """
        scope = request.scope
        encoding = _content_encoding(scope)
        body: bytes | None = scope.get(WHOLE_BODY)
        if body is None:
            declared = header(scope, b"content-length") or "0"
            if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > self._limit):
                raise BodyTooLargeError(self._too_large())
            body = await self._arriving(request.receive)
        self._check_length(len(body))
        if encoding == "identity":
            return body
        return await asyncio.to_thread(self._unpacked, body, encoding)

    async def _arriving(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                message = await receive()
                while message["type"] == "http.request":
                    body += message.get("body", b"")
                    self._check_length(len(body))
                    if not message.get("more_body"):
                        return bytes(body)
                    message = await receive()
        except TimeoutError:
            raise BodyTimeoutError(
                f"The body did not arrive within {self._seconds:g} seconds; "
                "send it faster or smaller."
            ) from None
        raise InvalidRequestError("The client hung up before its body was whole.")

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise BodyTooLargeError(self._too_large())

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
        try:
            unpacked = unpacker.decompress(body, self._limit + 1)
        except zlib.error:
            unpacked = None
        if unpacked is not None and len(unpacked) > self._limit:
            raise BodyTooLargeError(self._too_large())
        if unpacked is None or not unpacker.eof or unpacker.unused_data:
            raise CompressionError(
                f"The body is not one whole {encoding} stream; compress it again, or send it as "
                "it is without Content-Encoding."
            )
        return unpacked

    def _too_large(self) -> str:
        return f"The body is larger than {self._limit:,} bytes; send fewer or smaller images."


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
        return "identity"
    encoding = given.strip().lower()
    if encoding not in ("identity", *_WINDOW_BITS):
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding!r} is not taken here; send the body uncompressed, or "
            "as gzip or deflate."
        )
    return encoding


def packer(accept_encoding: str) -> tuple[str, Callable[[bytes], bytes]] | None:
    """Choose how to compress an answer, by the request's Accept-Encoding (RFC 9110, 12.5.3).

    Returns:
        the Content-Encoding and what packs so; None to leave the answer as it is.
    """
    weights = dict(map(_weighed, accept_encoding.split(",")))
    others = weights.get("*", 0.0)
    offered = {encoding: weights.get(encoding, others) for encoding in _WINDOW_BITS}
    best = max(offered, key=lambda encoding: offered[encoding])
    if not offered[best] > 0:  # also true of NaN
        return None

    def pack(body: bytes) -> bytes:
        return zlib.compress(body, _FASTEST, _WINDOW_BITS[best])

    return best, pack


def _weighed(item: str) -> tuple[str, float]:
    encoding, _, parameter = item.partition(";")
    weight = parameter.strip().removeprefix("q=")
    try:
        return encoding.strip().lower(), float(weight or 1)
    except ValueError:
        return encoding.strip().lower(), 0.0
