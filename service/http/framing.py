"""Where a request ends, by what its head says. Knows no connection.

A proxy and a server that read one head differently can be made to see different requests in the
same bytes (request smuggling). A head that could be read in two ways is refused (RFC 9112, 11.2).
"""

import re
from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Names in small letters."""

_HOST = re.compile(rb"[\w.~%!$&'()*+;=:\[\]-]*", re.ASCII)
_LENGTH = re.compile(rb"[0-9]{1,19}[ \t]*")
_ABOUT_UPGRADE = (b"upgrade", b"http2-settings")


class RefusedHeadError(Exception):
    """A head that is not taken."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
        """Of the answer."""


def body_length(method: bytes, version: str, headers: Headers) -> int | None:
    """Return the length of a request's body, bytes; None: it comes in chunks.

    version: of HTTP, as "1.1".

    Raises:
        RefusedHeadError: the head is not of HTTP/1.1 or HTTP/1.0, or leaves a doubt.
    """
    if version not in ("1.1", "1.0"):
        raise RefusedHeadError(505)
    if method == b"CONNECT":  # what follows it would not be HTTP
        raise RefusedHeadError(501)
    hosts = 0
    length: int | None = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RefusedHeadError(400)
        elif name == b"content-length":
            length = _declared(value)
        elif name == b"transfer-encoding":
            _require_chunked(value, version)
            length = None
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise RefusedHeadError(400)
    return length


def without_upgrade(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Write a head of HTTP/1.1 again without its wish for another protocol, which is none of ours.

    The parser takes whatever follows a head with that wish for the other protocol.
    """
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    lines += [
        b"%b: %b" % (name, _other_tokens(value) if name == b"connection" else value)
        for name, value in headers
        if name not in _ABOUT_UPGRADE
    ]
    return b"\r\n".join([*lines, b"", b""])


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _declared(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        raise RefusedHeadError(400)
    return int(value)


def _require_chunked(value: bytes, version: str) -> None:
    if version == "1.0":  # which has no chunks: a proxy may pass over the header
        raise RefusedHeadError(400)
    if value.strip().lower() != b"chunked":
        raise RefusedHeadError(501)


def _other_tokens(connection: bytes) -> bytes:
    tokens = [token.strip() for token in connection.split(b",")]
    return b", ".join([token for token in tokens if token.lower() not in _ABOUT_UPGRADE])
