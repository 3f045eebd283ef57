"""A request's body -> bytes, whole, decompressed and within the limits. Knows no format of it."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.types import Message, Receive

from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    CompressionError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from service.settings import ServiceSettings

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
        encoding = _content_encoding(request)
        declared = header(request, b"content-length") or "0"
        if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > self._limit):
            raise BodyTooLargeError(self._too_large())
        body = await self._arrived(request.receive)
        if encoding == "identity":
            return body
        return await to_thread.run_sync(self._unpacked, body, encoding)

    async def _arrived(self, receive: Receive) -> bytes:
        first = receive()
        try:  # most often it is all there: to set a timer would take longer than to look
            waits_for = first.send(None)  # type: ignore[attr-defined]
        except StopIteration as ended:
            message: Message = ended.value
        else:
            return await self._arriving(_Begun(first, waits_for), receive)
        if message.get("more_body") or message["type"] == "http.disconnect":
            return await self._arriving(_at_once(message), receive)
        body: bytes = message.get("body", b"")
        self._check_length(len(body))
        return body

    async def _arriving(self, first: Awaitable[Message], receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                message = await first
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


class _Begun:
    """A coroutine that was begun, and waits for something."""

    def __init__(self, coroutine: Any, waits_for: object) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[object, None, Message]:
        try:
            yield self._waits_for
        except BaseException as error:
            self._coroutine.throw(error)
            raise
        message: Message = yield from self._coroutine.__await__()
        return message


async def _at_once(message: Message) -> Message:
    return message


def header(request: Request, name: bytes) -> str | None:
    """Return a header, its lines joined if there are several; `name` in small letters."""
    given = [value for each, value in request.scope["headers"] if each == name]
    return str(b", ".join(given), "latin-1") if given else None


def _content_encoding(request: Request) -> str:
    given = header(request, b"content-encoding")
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
