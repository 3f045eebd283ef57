"""Requests with ambiguous framing, each with another request hidden after or inside its body.

A parser that disagrees with RFC 9112 about where the outer request ends executes the inner one:
request smuggling (CL.TE, TE.CL, Upgrade and similar). Knows no server and opens no connection.
"""

from collections.abc import Iterator
from dataclasses import dataclass

CONTROL_ROUTE = "/v2/repository/models/digits/unload"
"""The route of the inner request: a change that no public client may make."""

_MORE_THAN_64_BITS = 2**64
_EMPTY_LINES = b"\r\n" * 40_000
"""Parsers skip empty lines before a request, so wherever a read ends, the rest is intact."""
_MAX_SINGLE_BYTES = 4096


@dataclass(frozen=True)
class Framing:
    """An outer request with the inner one in or after its body."""

    name: str
    head: bytes
    body: bytes
    is_pipelined: bool = False
    """RFC 9112 makes the inner request a separate one, or leaves that open."""

    @property
    def writes(self) -> dict[str, list[bytes]]:
        """The ways to send the request: name → pieces."""
        message = self.head + self.body
        ways = {"one write": [message], "two writes": [self.head, self.body]}
        if len(message) <= _MAX_SINGLE_BYTES:
            ways["byte by byte"] = [message[i : i + 1] for i in range(len(message))]
        return ways


def inner_request(request_id: str) -> bytes:
    """Write the hidden request."""
    return (
        f"POST {CONTROL_ROUTE} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request_id}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


def framings(path: str, inner: bytes) -> list[Framing]:
    """Return every framing, with an outer request for `path`."""
    kinds = (_upgrades, _transfer_encodings, _chunks, _lengths, _heads, _requests)
    found = [framing for kind in kinds for framing in kind(path, inner)]
    assert len({each.name for each in found}) == len(found)
    return found


def _head(path: str, *lines: str, start: str = "POST {path} HTTP/1.1", host: bool = True) -> bytes:
    """Write a head; each of `lines` may contain any latin-1 characters, also line ends."""
    usual = ["Host: x"] if host else []
    every = [start.format(path=path), *usual, *lines, "Content-Type: application/json", "", ""]
    return "\r\n".join(every).encode("latin-1")


def _upgrades(path: str, inner: bytes) -> Iterator[Framing]:
    length = f"Content-Length: {len(inner)}"
    upgrade = "Connection: Upgrade"
    for protocol in ("h2c", "websocket", "foo", "TLS/1.0", "HTTP/2.0", "h2c, foo"):
        head = _head(path, upgrade, f"Upgrade: {protocol}", length)
        yield Framing(f"Upgrade: {protocol}", head, inner)
    settings = "HTTP2-Settings: AAMAAABkAAQAAP__"
    websocket = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    cases = {
        "Connection: keep-alive, Upgrade": ("Connection: keep-alive, Upgrade", "Upgrade: h2c"),
        "Connection: Upgrade, HTTP2-Settings": (
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            settings,
        ),
        "Upgrade without Connection": ("Upgrade: h2c",),
        "Connection: Upgrade without Upgrade": (upgrade,),
        "Connection: upgrade, small letters": ("connection: upgrade", "upgrade: h2c"),
        "Upgrade twice": (upgrade, "Upgrade: h2c", "Upgrade: websocket"),
        "Upgrade and Connection: close": (upgrade, "Connection: close", "Upgrade: h2c"),
        "Upgrade and Expect": (upgrade, "Upgrade: h2c", "Expect: 100-continue"),
        "a WebSocket's handshake by POST": (upgrade, "Upgrade: websocket", websocket),
    }
    for name, lines in cases.items():
        yield Framing(name, _head(path, *lines, length), inner)
    asked = (upgrade, "Upgrade: websocket", websocket, length)
    head = _head(path, *asked, start="GET {path} HTTP/1.1")
    yield Framing("a WebSocket's handshake with a body", head, inner)
    old = _head(path, upgrade, "Upgrade: h2c", length, start="POST {path} HTTP/1.0")
    yield Framing("Upgrade in HTTP/1.0", old, inner)
    chunked = _head(path, upgrade, "Upgrade: h2c", "Transfer-Encoding: chunked")
    yield Framing("Upgrade, body in chunks", chunked, _chunk(inner) + _LAST_CHUNK)
    # A proxy that buffers a body sends a short one together with the head, a long one in parts.
    long = _EMPTY_LINES + inner
    for protocol in ("h2c", "websocket", "foo"):
        lines = (upgrade, f"Upgrade: {protocol}", f"Content-Length: {len(long)}")
        yield Framing(f"Upgrade: {protocol}, a long body", _head(path, *lines), long)
        by_get = _head(path, *lines, start="GET {path} HTTP/1.1")
        yield Framing(f"GET, Upgrade: {protocol}, a long body", by_get, long)
    for target in ("x:80", "/predict"):
        start = f"CONNECT {target} HTTP/1.1"
        yield Framing(f"CONNECT {target}", _head(path, length, start=start), inner)
    connect = _head(path, "Transfer-Encoding: chunked", start="CONNECT x:80 HTTP/1.1")
    yield Framing("CONNECT, body in chunks", connect, _chunk(inner) + _LAST_CHUNK)


_LAST_CHUNK = b"0\r\n\r\n"

_TRANSFER_ENCODINGS = {
    "plain": "Transfer-Encoding: chunked",
    "capitals": "TRANSFER-ENCODING: CHUNKED",
    "no space": "Transfer-Encoding:chunked",
    "tab before": "Transfer-Encoding:\tchunked",
    "tab behind": "Transfer-Encoding: chunked\t",
    "xchunked": "Transfer-Encoding: xchunked",
    "chunkedx": "Transfer-Encoding: chunkedx",
    "chunked, identity": "Transfer-Encoding: chunked, identity",
    "identity, chunked": "Transfer-Encoding: identity, chunked",
    "chunked, chunked": "Transfer-Encoding: chunked, chunked",
    "gzip, chunked": "Transfer-Encoding: gzip, chunked",
    "a comma before": "Transfer-Encoding: , chunked",
    "a parameter": "Transfer-Encoding: chunked;a=b",
    "in quotes": 'Transfer-Encoding: "chunked"',
    "in brackets": "Transfer-Encoding: [chunked]",
    "a space inside": "Transfer-Encoding: chu nked",
    "identity": "Transfer-Encoding: identity",
    "empty": "Transfer-Encoding:",
    "twice, the other first": "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "twice, the other last": "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "twice the same": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "on the next line": "Transfer-Encoding:\r\n chunked",
    "continued": "Transfer-Encoding: chunked\r\n , identity",
    "vertical tab": "Transfer-Encoding: \x0bchunked",
    "form feed": "Transfer-Encoding: \x0cchunked",
    "space before the colon": "Transfer-Encoding : chunked",
    "tab before the colon": "Transfer-Encoding\t: chunked",
    "NUL behind": "Transfer-Encoding: chunked\x00",
    "NUL in the name": "Transfer-Encoding\x00: chunked",
    "CR before the name": "X: y\rTransfer-Encoding: chunked",
    "LF before the name": "X: y\nTransfer-Encoding: chunked",
    "a byte above ASCII": "Transfer-Encoding: \xa0chunked",
}
"""Some are valid, and must override the length and then close; the rest are errors."""


def _transfer_encodings(path: str, inner: bytes) -> Iterator[Framing]:
    whole = _LAST_CHUNK + inner
    size = b"%x\r\n" % len(inner)
    chunks = size + inner + b"\r\n" + _LAST_CHUNK
    for name, line in _TRANSFER_ENCODINGS.items():
        long = _head(path, f"Content-Length: {len(whole)}", line)
        yield Framing(f"CL.TE, {name}", long, whole)
        short = _head(path, f"Content-Length: {len(size)}", line)
        yield Framing(f"TE.CL, {name}", short, chunks)
    other = _head(path, "Transfer_Encoding: chunked", f"Content-Length: {len(whole)}")
    yield Framing("CL.TE, underscore", other, whole)
    folded = _head(path, f"Content-Length: {len(whole)}", "X: y\r\n Transfer-Encoding: chunked")
    yield Framing("CL.TE, in a continued line", folded, whole)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunks(path: str, inner: bytes) -> Iterator[Framing]:
    head = _head(path, "Transfer-Encoding: chunked")
    inside = {
        "in one chunk": _chunk(inner) + _LAST_CHUNK,
        "in chunks of seven bytes": b"".join(
            _chunk(inner[i : i + 7]) for i in range(0, len(inner), 7)
        )
        + _LAST_CHUNK,
        "with an extension": b"%x;a=b\r\n%b\r\n" % (len(inner), inner) + _LAST_CHUNK,
        "with a quoted extension": b'%x;a="b;c"\r\n%b\r\n' % (len(inner), inner) + _LAST_CHUNK,
        "with leading zeros": b"000%x\r\n%b\r\n" % (len(inner), inner) + _LAST_CHUNK,
        "as trailers": b"0\r\n" + inner,
        "behind a trailer": b"0\r\nX: y\r\n" + inner,
    }
    badly_framed = {
        "0x before the size": b"0x0\r\n\r\n",
        "a size above 64 bits": b"%x\r\n\r\n" % _MORE_THAN_64_BITS,
        "a sign before the size": b"+0\r\n\r\n",
        "a minus before the size": b"-0\r\n\r\n",
        "a space before the size": b" 0\r\n\r\n",
        "a tab behind the size": b"0\t\r\n\r\n",
        "an underscore in the size": b"0_0\r\n\r\n",
        "a letter behind the size": b"0g\r\n\r\n",
        "no size": b"\r\n\r\n",
        "no size but an extension": b";a\r\n\r\n",
        "LF behind the sizes": b"1\nX\n0\n\n",
        "LF in an extension": b"1;\nX\r\n0\r\n\r\n",
        "CR in an extension": b"1;a\rb\r\nX\r\n0\r\n\r\n",
        "CRLF in a quoted extension": b'1;a="\r\nX\r\n0\r\n\r\n',
        "NUL behind the size": b"0\x00\r\n\r\n",
        "two CR behind the size": b"0\r\r\n\r\n",
        "no line end behind the data": b"1\r\nX0\r\n\r\n",
        "LF behind the data": b"1\r\nX\n0\r\n\r\n",
        "two bytes too many": b"1\r\nXYZ0\r\n\r\n",
    }
    valid = {
        "behind the last chunk": _LAST_CHUNK,
        "behind a trailer that is whole": b"0\r\nX: y\r\n\r\n",
        "behind a trailer Content-Length": b"0\r\nContent-Length: 5\r\n\r\n",
        "behind a trailer Transfer-Encoding": b"0\r\nTransfer-Encoding: x\r\n\r\n",
        "a space behind the size": b"0 \r\n\r\n",  # llhttp and others accept it, for old clients
    }
    for name, body in inside.items():
        yield Framing(f"chunked, {name}", head, body)
    for name, body in badly_framed.items():
        yield Framing(f"chunked, {name}", head, body + inner)
    for name, body in valid.items():
        yield Framing(f"chunked, {name}", head, body + inner, is_pipelined=True)
    old = _head(path, "Connection: keep-alive", "Transfer-Encoding: chunked", start=_OLD)
    yield Framing("chunked in HTTP/1.0", old, _LAST_CHUNK + inner)
    both = (f"Content-Length: {len(inner)}", "Connection: keep-alive", "Transfer-Encoding: chunked")
    yield Framing("chunked in HTTP/1.0, and a length", _head(path, *both, start=_OLD), inner)


_OLD = "POST {path} HTTP/1.0"


def _lengths(path: str, inner: bytes) -> Iterator[Framing]:
    n = len(inner)
    lines = {
        "plus": f"Content-Length: +{n}",
        "minus": f"Content-Length: -{n}",
        "hexadecimal": f"Content-Length: 0x{n:x}",
        "hexadecimal zero": "Content-Length: 0x0",
        "list of the same": f"Content-Length: {n}, {n}",
        "list, 0 first": f"Content-Length: 0, {n}",
        "list, 0 last": f"Content-Length: {n}, 0",
        "twice, 0 first": f"Content-Length: 0\r\nContent-Length: {n}",
        "twice, 0 last": f"Content-Length: {n}\r\nContent-Length: 0",
        "twice the same": f"Content-Length: {n}\r\nContent-Length: {n}",
        "spaces around": f"Content-Length:   {n}  ",
        "a space inside": f"Content-Length: 0 {n}",
        "an underscore inside": f"Content-Length: {n}_0",
        "exponent": f"Content-Length: {n}e0",
        "decimal point": f"Content-Length: {n}.0",
        "semicolon": f"Content-Length: {n};0",
        "leading zeros": f"Content-Length: 000{n}",
        "empty": "Content-Length:",
        "a word": "Content-Length: none",
        "above 64 bits": f"Content-Length: {_MORE_THAN_64_BITS}",
        "above 64 bits, with the right rest": f"Content-Length: {_MORE_THAN_64_BITS + n}",
        "vertical tab": f"Content-Length: \x0b{n}",
        "NUL behind": f"Content-Length: {n}\x00",
        "a digit that is not ASCII": f"Content-Length: {n}\xb2",
        "space before the colon": f"Content-Length : {n}",
        "tab before the colon": f"Content-Length\t: {n}",
        "on the next line": f"Content-Length:\r\n {n}",
        "continued": "Content-Length: 0\r\n 0",
        "CR inside": f"Content-Length: 0\rContent-Length: {n}",
        "LF before the name": f"X: y\nContent-Length: {n}",
        "quoted": f'Content-Length: "{n}"',
    }
    for name, line in lines.items():
        yield Framing(f"Content-Length, {name}", _head(path, line), inner)
    other = _head(path, f"Content_Length: {n}")
    yield Framing("Content-Length, underscore", other, inner, is_pipelined=True)
    yield Framing("Content-Length above the limit", _head(path, "Content-Length: 99999999"), inner)


def _heads(path: str, inner: bytes) -> Iterator[Framing]:
    length = f"Content-Length: {len(inner)}"
    lines = {
        "space before a colon": "X-A : b",
        "a line without a colon": "X-A",
        "a line without a name": ": b",
        "a name with a space": "X A: b",
        "a name in brackets": "X(A): b",
        "a continued line": "X-A: b\r\n c",
        "NUL in a value": "X-A: b\x00c",
        "CR in a value": "X-A: b\rc",
        "a control character in a value": "X-A: b\x01c",
        "two Host": "Host: y",
        "Connection: close": "Connection: close",
        "Expect: 100-continue": "Expect: 100-continue",
        "Expect: something": "Expect: something",
        "an unknown Content-Encoding": "Content-Encoding: x",
    }
    for name, line in lines.items():
        yield Framing(name, _head(path, line, length), inner)
    starts = {
        "absolute form": "POST http://x{path} HTTP/1.1",
        "absolute form, another host": "POST http://y{path} HTTP/1.1",
        "HTTP/0.9": "GET {path}",
        "HTTP/1.0 kept alive": _OLD + "\r\nConnection: keep-alive",
        "HTTP/2.0": "POST {path} HTTP/2.0",
        "HTTP/1.2": "POST {path} HTTP/1.2",
        "HTTP/01.1": "POST {path} HTTP/01.1",
        "http/1.1": "POST {path} http/1.1",
        "ICE/1.1": "POST {path} ICE/1.1",
        "two spaces in the first line": "POST  {path}  HTTP/1.1",
        "tabs in the first line": "POST\t{path}\tHTTP/1.1",
        "a space behind the first line": "POST {path} HTTP/1.1 ",
        "a space in the target": "POST {path} a HTTP/1.1",
        "NUL in the target": "POST {path}\x00 HTTP/1.1",
        "an empty line before": "\r\nPOST {path} HTTP/1.1",
        "LF before": "\nPOST {path} HTTP/1.1",
        "a space before": " POST {path} HTTP/1.1",
        "a method in small letters": "post {path} HTTP/1.1",
        "a method of our own": "UNKNOWN {path} HTTP/1.1",
        "a continued first line": "POST {path} HTTP/1.1\r\n X: y",
    }
    for name, start in starts.items():
        yield Framing(name, _head(path, length, start=start), inner)
    yield Framing("no Host", _head(path, length, host=False), inner)
    yield Framing("an empty Host", _head(path, "Host:", length, host=False), inner)
    usual = _head(path, length)
    yield Framing("LF for every line end", usual.replace(b"\r\n", b"\n"), inner)
    yield Framing("CR for every line end", usual.replace(b"\r\n", b"\r"), inner)
    yield Framing("CR LF LF at the end", usual[:-2] + b"\n", inner)
    yield Framing("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", inner)
    yield Framing("HTTP/0.9 without an end", b"GET /nope\r\n", inner)


def _requests(path: str, inner: bytes) -> Iterator[Framing]:
    length = f"Content-Length: {len(inner)}"
    for method in ("GET", "HEAD", "DELETE", "TRACE", "PUT", "OPTIONS"):
        start = f"{method} {{path}} HTTP/1.1"
        yield Framing(f"{method} with a body", _head(path, length, start=start), inner)
        chunked = _head(path, "Transfer-Encoding: chunked", start=start)
        yield Framing(f"{method}, body in chunks", chunked, _chunk(inner) + _LAST_CHUNK)
    star = _head(path, length, start="OPTIONS * HTTP/1.1")
    yield Framing("OPTIONS *", star, inner)
    query = _head(path, length, start="POST {path}?unknown=1 HTTP/1.1")
    yield Framing("an answer before the body", query, inner)
    yield Framing("a body as it should be", _head(path, length), inner)
    # The inner one comes after a request that ends the connection.
    ended = _head(path, "Connection: close", "Content-Length: 0")
    yield Framing("behind Connection: close", ended, inner)
    old = _head(path, "Content-Length: 0", start=_OLD)
    yield Framing("behind HTTP/1.0", old, inner)
    get = "GET /nope HTTP/1.1"
    yield Framing("pipelined behind GET", _head(path, start=get), inner, is_pipelined=True)
    body = b'{"instances": []}'
    post = _head(path, f"Content-Length: {len(body)}")
    yield Framing("pipelined behind POST", post, body + inner, is_pipelined=True)
    none = _head(path)
    yield Framing("pipelined behind POST without a length", none, inner, is_pipelined=True)
