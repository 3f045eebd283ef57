"""HTTP as bytes over a socket: write requests, send them in pieces, parse the responses.

No client library is used, since it would correct requests that are malformed on purpose.
"""

import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_READ_BYTES = 65_536
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *(\S+)", re.IGNORECASE)

Address = tuple[str, int]


@dataclass(frozen=True)
class Response:
    """One response; its body is empty where the head declares none."""

    status: int
    head: bytes
    body: bytes

    @property
    def request_id(self) -> str:
        """The id of the request that this responds to, or ""."""
        found = _REQUEST_ID.search(self.head)
        return found[1].decode("latin-1") if found else ""


def parse_responses(data: bytes) -> list[Response]:
    """Parse the responses of a server; one that is cut off at the end is left out."""
    found = []
    while data.startswith(b"HTTP/"):
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            break
        length = _LENGTH.search(head)
        if _CHUNKED.search(head):
            body, data = _unchunked(rest)
        else:
            size = int(length[1]) if length else 0
            body, data = rest[:size], rest[size:]
        found.append(Response(int(head.split()[1]), head, body))
    return found


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        size = int(line.partition(b";")[0] or b"0", 16) if end else 0
        if size == 0:
            return body, data[2:]
        body, data = body + data[:size], data[size + 2 :]


def send_raw(
    address: Address,
    pieces: Sequence[bytes],
    *,
    silence: float = 0.4,
    pause: float = 0.0,
    source: str | None = None,
) -> tuple[bytes, bool]:
    """Send pieces on a new connection; return the received bytes and whether it was closed.

    silence: stop reading after so many seconds without a byte.
    pause: seconds between two pieces.
    source: the address to send from.
    """
    data, closed = b"", False
    origin = None if source is None else (source, 0)
    with socket.create_connection(address, timeout=5, source_address=origin) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # closed before all was sent
            for index, piece in enumerate(pieces):
                if pause and index:
                    time.sleep(pause)
                connection.sendall(piece)
        connection.settimeout(silence)
        try:
            while piece := connection.recv(_READ_BYTES):
                data += piece
            closed = True
        except TimeoutError:
            pass
        except OSError:
            closed = True
    return data, closed


def request(
    method: str, path: str, body: bytes | None = None, *headers: str, host: str = "x"
) -> bytes:
    """Write a well-formed request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def exchange(
    address: Address, message: bytes, *, timeout: float = 10, source: str | None = None
) -> Response | None:
    """Send one request on a new connection; None if no response came within `timeout` seconds."""
    origin = None if source is None else (source, 0)
    data = b""
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection(address, timeout, source_address=origin) as connection:
            connection.sendall(message)
            while not (whole := complete_length(data)):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                piece = connection.recv(_READ_BYTES)
                if not piece:
                    return None
                data += piece
            return parse_responses(data[:whole])[-1]
    except OSError:
        return None


def complete_length(data: bytes) -> int:
    """Return the length of the first response with status 200 or more; 0 if it is incomplete."""
    begin = 0
    while True:
        end = data.find(b"\r\n\r\n", begin)
        if end < 0:
            return 0
        if data[begin + 9 : begin + 10] != b"1":
            break
        begin = end + 4  # 100 Continue
    head = data[begin:end]
    if _CHUNKED.search(head):
        last = data.find(b"\r\n0\r\n\r\n", end)
        return last + 7 if last >= 0 else 0
    length = _LENGTH.search(head)
    size = end + 4 + (int(length[1]) if length else 0)
    return size if len(data) >= size else 0
