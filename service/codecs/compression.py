"""Compresses and decompresses bodies by HTTP content coding (RFC 9110, 8.4), within a limit."""

import zlib
from collections.abc import Callable

from service.errors import BodyTooLargeError, CompressionError

IDENTITY = "identity"
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's `wbits` by content coding: gzip is RFC 1952, deflate is RFC 1950."""

_FASTEST_LEVEL = 1
_MAX_LENGTH_DIGITS = 19  # Python refuses to parse a number of thousands of digits
_MAX_ACCEPT_ENCODING_CHARACTERS = 1_024
"""A longer Accept-Encoding header is ignored; browsers send about thirty characters."""


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body to at most `limit` bytes.

    Raises:
        BodyTooLargeError: the body decompresses to more than `limit` bytes.
        CompressionError: the body is not one complete stream of this encoding.
    """
    if encoding == IDENTITY:
        return body
    decompressed = decompress_up_to(body, encoding, limit)
    if decompressed is None:
        raise body_too_large_error(limit)
    return decompressed


def decompress_up_to(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Decompress a body; return None if that gives more than `limit` bytes.

    Raises:
        CompressionError: the body is not one complete stream of this encoding.
    """
    decompressor = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        decompressed = decompressor.decompress(body, limit + 1)
    except zlib.error:
        decompressed = None
    if decompressed is not None and len(decompressed) > limit:
        return None
    if decompressed is None or not decompressor.eof or decompressor.unused_data:
        raise CompressionError(
            f"The body is not one whole {encoding} stream; compress it again, or send it as "
            "it is without Content-Encoding."
        )
    return decompressed


def body_too_large_error(limit: int) -> BodyTooLargeError:
    """Build the error of a body larger than `limit` bytes, compressed or decompressed."""
    return BodyTooLargeError(
        f"The body is larger than {limit:,} bytes; send fewer or smaller images."
    )


def is_declared_too_large(length: str, limit: int) -> bool:
    """Return whether a Content-Length says that there are more than `limit` bytes."""
    return length.isdecimal() and (len(length) > _MAX_LENGTH_DIGITS or int(length) > limit)


def choose_compressor(accept_encoding: str) -> tuple[str, Callable[[bytes], bytes]] | None:
    """Choose how to compress a response by the request's Accept-Encoding (RFC 9110, 12.5.3).

    Returns:
        the Content-Encoding and the function that compresses; None to send the body uncompressed.
    """
    if len(accept_encoding) > _MAX_ACCEPT_ENCODING_CHARACTERS:
        return None
    weights = dict(map(_parse_weight, accept_encoding.split(",")))
    default_weight = weights.get("*", 0.0)
    supported = {encoding: weights.get(encoding, default_weight) for encoding in WINDOW_BITS}
    best = max(supported, key=lambda encoding: supported[encoding])
    if not supported[best] > 0:  # `not … > 0` refuses NaN, too
        return None

    def compress(body: bytes) -> bytes:
        return zlib.compress(body, _FASTEST_LEVEL, WINDOW_BITS[best])

    return best, compress


def _parse_weight(item: str) -> tuple[str, float]:
    """Split `gzip;q=0.5` into the coding and its weight; an invalid weight counts as 0."""
    encoding, _, parameter = item.partition(";")
    weight = parameter.strip().removeprefix("q=")
    try:
        return encoding.strip().lower(), float(weight or 1)
    except ValueError:
        return encoding.strip().lower(), 0.0
