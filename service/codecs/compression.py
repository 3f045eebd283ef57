"""Content codings of HTTP, both ways, within limits (RFC 9110, 8.4). Knows no request."""

import zlib
from collections.abc import Callable

from service.errors import BodyTooLargeError, CompressionError

IDENTITY = "identity"
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # RFC 1952, RFC 1950

_FASTEST = 1
_LONGEST_PREFERENCE = 1_024
"""Of an Accept-Encoding, in characters; browsers send some thirty."""


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Unpack a whole body to at most `limit` bytes.

    Raises:
        BodyTooLargeError, CompressionError.
    """
    if encoding == IDENTITY:
        return body
    unpacked = unpack_if_small(body, encoding, limit)
    if unpacked is None:
        raise too_large(limit)
    return unpacked


def unpack_if_small(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Unpack a body; None: it comes to more than `limit` bytes. Raises CompressionError."""
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        unpacked = None
    if unpacked is not None and len(unpacked) > limit:
        return None
    if unpacked is None or not unpacker.eof or unpacker.unused_data:
        raise CompressionError(
            f"The body is not one whole {encoding} stream; compress it again, or send it as "
            "it is without Content-Encoding."
        )
    return unpacked


def too_large(limit: int) -> BodyTooLargeError:
    """Build the error of a body that is, packed or unpacked, larger than `limit` bytes."""
    return BodyTooLargeError(
        f"The body is larger than {limit:,} bytes; send fewer or smaller images."
    )


def packer(accept_encoding: str) -> tuple[str, Callable[[bytes], bytes]] | None:
    """Choose how to compress an answer, by the request's Accept-Encoding (RFC 9110, 12.5.3).

    Returns:
        the Content-Encoding and what packs so; None to leave the answer as it is.
    """
    if len(accept_encoding) > _LONGEST_PREFERENCE:
        return None
    weights = dict(map(_weighed, accept_encoding.split(",")))
    others = weights.get("*", 0.0)
    offered = {encoding: weights.get(encoding, others) for encoding in WINDOW_BITS}
    best = max(offered, key=lambda encoding: offered[encoding])
    if not offered[best] > 0:  # also true of NaN
        return None

    def pack(body: bytes) -> bytes:
        return zlib.compress(body, _FASTEST, WINDOW_BITS[best])

    return best, pack


def _weighed(item: str) -> tuple[str, float]:
    encoding, _, parameter = item.partition(";")
    weight = parameter.strip().removeprefix("q=")
    try:
        return encoding.strip().lower(), float(weight or 1)
    except ValueError:
        return encoding.strip().lower(), 0.0
