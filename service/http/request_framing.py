"""Finds where a request's body ends, from the request's head. Knows no connection.

A proxy and a server that read one head differently can be made to see different requests in the
same bytes (request smuggling). A head that could be read in two ways is refused (RFC 9112, 11.2).
"""

import re
from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Pairs of a lower-case name and a value."""

_HOST = re.compile(rb"[\w.~%!$&'()*+;=:\[\]-]*", re.ASCII)
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,19}[ \t]*")
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


class RefusedHeadError(Exception):
    """A request head that is refused."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
        """HTTP status of the response."""


def body_length(method: bytes, version: str, headers: Headers) -> int | None:
    """Return the length of a request's body in bytes; None for a chunked body.

    version: of HTTP, such as "1.1".

    Raises:
        RefusedHeadError: the head is not of HTTP/1.1 or HTTP/1.0, or is ambiguous.
    """
    if version not in ("1.1", "1.0"):
        raise RefusedHeadError(505)
    if method == b"CONNECT":  # the bytes after it would not be HTTP
        raise RefusedHeadError(501)
    hosts = 0
    length: int | None = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RefusedHeadError(400)
        elif name == b"content-length":
            length = _parse_content_length(value)
        elif name == b"transfer-encoding":
            _require_chunked(value, version)
            length = None
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise RefusedHeadError(400)
    return length


def without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """Return a head without its headers that ask for another protocol.

    version: of HTTP, such as "1.1".

    The parser would treat all bytes after a head with these headers as the other protocol's.
    """
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [
        b"%b: %b" % (name, _without_upgrade_tokens(value) if name == b"connection" else value)
        for name, value in headers
        if name not in _UPGRADE_HEADERS
    ]
    return b"\r\n".join([*lines, b"", b""])


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as they are sent over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _parse_content_length(value: bytes) -> int:
    if not _CONTENT_LENGTH.fullmatch(value):
        raise RefusedHeadError(400)
    return int(value)


def _require_chunked(value: bytes, version: str) -> None:
    if version == "1.0":  # which has no chunks: a proxy may ignore the header
        raise RefusedHeadError(400)
    if value.strip().lower() != b"chunked":
        raise RefusedHeadError(501)


def _without_upgrade_tokens(connection: bytes) -> bytes:
    tokens = [token.strip() for token in connection.split(b",")]
    return b", ".join([token for token in tokens if token.lower() not in _UPGRADE_HEADERS])
