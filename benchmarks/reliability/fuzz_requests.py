"""Generates fuzzed requests from a seed. Opens no connection."""

import gzip
import io
import random
from collections.abc import Sequence
from itertools import pairwise

import orjson
from PIL import Image

_SIDE = 8
"""Width and height of the digits' images, pixels."""
_BOUNDARY = "fuzz"
_IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MAX_MUTATIONS = 5

_ROUTES = ("/predict", "/uncertainty", "/v2/models/digits/infer", "/v2/models/digits-mc/infer")
_OTHER_ROUTES = (
    "/v1/models/digits:predict",
    "/v1/models/digits/versions/1:predict",
    "/v2/models/digits/versions/1/infer",
    "/v2/models/digits/versions/999999999999999999999/infer",
    "/v2/models/%00/infer",
    "/v2/models/digits",
    "/v2/models/digits/ready",
    "/v2/models/digits/config",
    "/v2/models/digits/stats",
    "/v2/repository/index",
    "/v2/health/ready",
    "/v2",
    "/v1/models",
    "/models",
    "/models/digits",
    "/models/..%2f..%2fetc",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/",
    "//",
    "/nope",
    "/%ff%fe",
    "/predict/",
    "*",
    "http://x/predict",
)
_QUERY_NAMES = ("model", "version", "samples", "seed", "method", "tolerance", "%00", "unknown", "")
_QUERY_VALUES = ("digits", "1", "-1", "0", "nan", "1e999", "mc_dropout", "analytic", "%ff", "", "9")
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
_HEADERS = (
    "Accept-Encoding: gzip",
    "Accept-Encoding: deflate;q=0.5, gzip;q=nan, *;q=0",
    "Accept: image/png",
    "Content-Encoding: gzip",
    "Content-Encoding: deflate",
    "Content-Encoding: gzip, gzip",
    "Content-Encoding: br",
    "Content-Type: text/plain",
    "Content-Type: image/svg+xml",
    "Content-Type: multipart/form-data",
    "Content-Type: multipart/form-data; boundary=",
    "Content-Type: application/json; charset=utf-16",
    "Inference-Header-Content-Length: 10",
    "Inference-Header-Content-Length: -1",
    "Inference-Header-Content-Length: 99999999999999999999",
    "Inference-Header-Content-Length: x",
    "Range: bytes=0-1",
    "If-None-Match: *",
    "Cookie: a=b",
    "X-A: " + "a" * 3000,
    "traceparent: 00-0-0-0",
)
_FRAMINGS = (
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999999",
    "Content-Length: 20000000",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
    "Expect: 100-continue",
    "Expect: x",
    "Connection: close",
    "Host: y",
    " folded",
    "no colon",
    ": no name",
    "X-A: \x00",
    "X-A: b\rX-B: c",
    "X-A: " + "a" * 70_000,
)
_FRAGMENTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"[",
    b"]",
    b"{",
    b'"',
    b"9" * 30,
    b"-",
    b"e9",
)


_ID = b"@the-id@"
_PATH = "/v2/models/digits/infer"


def good_bodies() -> list[bytes]:
    """Write bodies of good requests; `_ID` stands for the id."""
    generator = random.Random(7)  # noqa: S311
    bodies = []
    for _ in range(16):
        data = [generator.randrange(17) / 16 for _ in range(_SIDE * _SIDE)]
        bodies.append(b'{"id": "%b", "inputs": %b}' % (_ID, orjson.dumps([_tensor(data)])))
    return bodies


def good_request(body: bytes, request_id: str) -> bytes:
    """Write a request with a body of `good_bodies` and this id."""
    named = body.replace(_ID, request_id.encode())
    head = f"POST {_PATH} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request_id}\r\n"
    return f"{head}Content-Length: {len(named)}\r\n\r\n".encode() + named


def replace_id(response: bytes, request_id: str) -> bytes:
    """Replace the id in a response body by `_ID`."""
    return response.replace(request_id.encode(), _ID)


class Fuzzer:
    """Generates requests from a seed; the same seed gives the same requests."""

    def __init__(self, seed: int) -> None:
        """Prepare a body of every content type."""
        self._random = random.Random(seed)  # noqa: S311
        self._bodies = _bodies()

    def well_framed(self, request_id: str) -> bytes:
        """Write a mutated request with the right framing: its Content-Length is its length."""
        generator = self._random
        kind, body, headers = generator.choice(self._bodies)
        if generator.random() < 0.7:
            body = self.mutate(body)
        if generator.random() < 0.1:
            body, headers = gzip.compress(body, 1), (*headers, "Content-Encoding: gzip")
            if generator.random() < 0.5:
                body = self.mutate(body)
        route = kind if generator.random() < 0.8 else generator.choice((*_ROUTES, *_OTHER_ROUTES))
        method = "POST" if generator.random() < 0.9 else generator.choice(_METHODS)
        lines = list(headers)
        if generator.random() < 0.2:
            lines.insert(generator.randrange(len(lines) + 1), generator.choice(_HEADERS))
        return _message(method, route + self._query(), request_id, lines, body)

    def badly_framed(self, request_id: str) -> bytes:
        """Write a request whose head or framing is mutated, and so may be malformed."""
        generator = self._random
        message = self.well_framed(request_id)
        head, end, body = message.partition(b"\r\n\r\n")
        if generator.random() < 0.5:
            lines = head.split(b"\r\n")
            at = generator.randrange(1, len(lines) + 1)
            lines.insert(at, generator.choice(_FRAMINGS).encode("latin-1"))
            head = b"\r\n".join(lines)
        else:
            head = self.mutate(head)
        return head + end + body

    def truncate(self, message: bytes) -> bytes:
        """Return a beginning of a message, for a client that hangs up."""
        return message[: self._random.randrange(1, len(message) + 1)]

    def split(self, message: bytes) -> list[bytes]:
        """Split a message into one to four pieces."""
        places = sorted(
            self._random.randrange(len(message)) for _ in range(self._random.randrange(4))
        )
        bounds = [0, *places, len(message)]
        return [message[a:b] for a, b in pairwise(bounds) if b > a]

    def mutate(self, data: bytes) -> bytes:
        """Replace, insert, delete, repeat or flip some bytes, or cut the end off."""
        generator, found = self._random, bytearray(data)
        for _ in range(generator.randrange(1, _MAX_MUTATIONS)):
            if not found:
                break
            at = generator.randrange(len(found))
            match generator.randrange(6):
                case 0:
                    found[at] = generator.randrange(256)
                case 1:
                    found[at:at] = generator.choice(_FRAGMENTS)
                case 2:
                    del found[at : at + generator.randrange(1, 9)]
                case 3:
                    found[at:at] = found[at : at + generator.randrange(1, 33)]
                case 4:
                    found[at] ^= 1 << generator.randrange(8)
                case _:
                    if generator.random() < 0.3:
                        del found[at:]
        return bytes(found)

    def _query(self) -> str:
        generator = self._random
        if generator.random() < 0.8:
            return ""
        pairs = (
            f"{generator.choice(_QUERY_NAMES)}={generator.choice(_QUERY_VALUES)}"
            for _ in range(generator.randrange(1, 4))
        )
        return "?" + "&".join(pairs)


def _message(
    method: str, target: str, request_id: str, headers: Sequence[str], body: bytes
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"X-Request-ID: {request_id}", *headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode("latin-1") + body


_Body = tuple[str, bytes, tuple[str, ...]]
"""Route, body, headers."""


def _bodies() -> list[_Body]:
    generator = random.Random(1)  # noqa: S311
    data = [generator.randrange(17) / 16 for _ in range(_SIDE * _SIDE)]
    rows = [data[i : i + _SIDE] for i in range(0, len(data), _SIDE)]
    nested = orjson.dumps({"instances": [rows]})
    tensor = orjson.dumps({"inputs": [_tensor(data)], "parameters": {"samples": 16}})
    raw = bytes(4 * len(data))
    size = {"binary_data_size": len(raw)}
    header = orjson.dumps({"inputs": [{**_tensor(None), "parameters": size}]})
    binary = (f"Inference-Header-Content-Length: {len(header)}",)
    json = ("Content-Type: application/json",)
    found: list[_Body] = [
        *((route, nested, json) for route in ("/predict", "/uncertainty") for _ in range(3)),
        *((route, tensor, json) for route in _ROUTES[2:] for _ in range(3)),
        *((route, header + raw, binary) for route in _ROUTES[2:] for _ in range(2)),
        ("/v1/models/digits:predict", nested, json),
        ("/predict", b"[" * 300, json),
        ("/predict", b'{"instances": [[0]' + b",[0]" * 200 + b"]}", json),
        ("/v2/models/digits/infer", b'{"inputs": [{"name": "images", "shape": [1e9]}]}', json),
        ("/nope", b"", ()),
    ]
    for kind in _IMAGES:
        file = io.BytesIO()
        Image.new("L", (_SIDE, _SIDE), 99).save(file, kind)
        found.append(("/predict", file.getvalue(), (f"Content-Type: image/{kind.lower()}",)))
        if kind == "PNG":
            part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
            form = (part + "\r\n").encode() + file.getvalue() + f"\r\n--{_BOUNDARY}--".encode()
            form_type = (f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",)
            found.append(("/predict", form, form_type))
    return found


def _tensor(data: list[float] | None) -> dict[str, object]:
    tensor: dict[str, object] = {"name": "images", "shape": [1, 1, _SIDE, _SIDE]}
    tensor["datatype"] = "FP32"
    return tensor if data is None else {**tensor, "data": data}
