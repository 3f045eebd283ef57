"""Decompression bombs: bodies that are small to send and expensive to decode.

Assembled byte by byte where an encoder would refuse; knows no server.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import orjson
from PIL import Image

from benchmarks.reliability.wire import request

_MIB = 2**20
_BODY_BYTES = 10 * _MIB
"""The service's limit for a body, compressed and decompressed."""
_BOUNDARY = "bomb"


def progressive_jpeg(side: int = 5000, scans: int = 2500) -> bytes:
    """Write a grey JPEG that repeats its last scan; a decoder visits every pixel for each scan."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True, quality=50)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]  # from its header to the end of the image's marker
    return data[:-2] + scan * scans + data[-2:]


def png(width: int, height: int, *chunks: bytes, depth: int = 8, interlaced: bool = False) -> bytes:
    """Write a grey PNG of zeros, with `chunks` before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, int(interlaced))
    packer = zlib.compressobj(9)
    row = bytes(1 + (width * depth + 7) // 8)
    block = row * max(1, _MIB // len(row))
    left, packed = len(row) * height, b""
    while left > 0:
        packed += packer.compress(block[:left])
        left -= len(block)
    pixels = chunk(b"IDAT", packed + packer.flush())
    parts = [chunk(b"IHDR", header), *chunks, pixels, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Write a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def text_chunks(count: int = 63) -> Iterator[bytes]:
    """Write text chunks that decompress to 1 MiB each."""
    packed = zlib.compress(bytes(_MIB - 128), 9)
    for number in range(count):
        yield chunk(b"zTXt", b"k%d\x00\x00" % number + packed)


def rationals(count: int = 1_200_000) -> bytes:
    """Write EXIF data with one entry of `count` fractions; each becomes a Python object."""
    offset = 8 + 2 + 2 * 12 + 4
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(
        ">HHII", 0xFDE8, 5, count, offset
    )
    head = b"MM\x00*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    return head + struct.pack(">II", 355, 113) * count


def webp(side: int = 5000) -> bytes:
    """Write a WebP of one colour, a few dozen bytes long."""
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (1, 2, 3, 128)).save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()


def animated_gif(side: int = 2000, frames: int = 400) -> bytes:
    """Write a GIF of many identical frames."""
    file = io.BytesIO()
    Image.new("P", (side, side)).save(file, "GIF")
    data = file.getvalue()
    begin = data.index(b"\x2c", 13 + 3)
    return data[:begin] + data[begin:-1] * frames + b";"


def run_length_bmp(side: int = 5000) -> bytes:
    """Write a BMP whose runs are one pixel long; Pillow decodes it in Python."""
    rows = (b"\x01\x00" * min(side, 900) + b"\x00\x00") * side + b"\x00\x01"
    offset = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    info_header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return head + info_header + bytes(1024) + rows


def form(files: list[bytes]) -> bytes:
    """Write a multipart body of files."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    parts = [head.encode() + each + b"\r\n" for each in files]
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


Bomb = Callable[[], bytes]
"""A function that writes a whole request; called late, since some take seconds to write."""


def image_bombs() -> dict[str, Bomb]:
    """Return an image bomb of each kind, by name."""
    form_type = f"multipart/form-data; boundary={_BOUNDARY}"
    kinds: dict[str, tuple[str, Bomb]] = {
        "a progressive JPEG": ("image/jpeg", progressive_jpeg),
        "a WebP of one colour": ("image/webp", webp),
        "a PNG one pixel wide": ("image/png", lambda: png(1, 25_000_000)),
        "a PNG one pixel high": ("image/png", lambda: png(25_000_000, 1)),
        "an interlaced PNG": ("image/png", lambda: png(5000, 5000, interlaced=True)),
        "a PNG with text": ("image/png", lambda: png(8, 8, *text_chunks())),
        "a PNG with fractions": ("image/png", lambda: png(8, 8, chunk(b"eXIf", rationals()))),
        "a GIF of many frames": ("image/gif", animated_gif),
        "a BMP of short runs": ("image/bmp", run_length_bmp),
        "a form of PNGs with text": (form_type, lambda: form([png(8, 8, *text_chunks())] * 64)),
        "a form of WebPs": (form_type, lambda: form([webp()] * 2)),
    }

    def sent(kind: str, write: Bomb) -> Bomb:
        return lambda: request("POST", "/predict", write(), f"Content-Type: {kind}")

    return {name: sent(kind, write) for name, (kind, write) in kinds.items()}


_PACKED = {
    "lists of 0": (b'{"instances":[[', b"[0],", b"[0]]]}"),
    "empty lists": (b'{"instances":[', b"[],", b"[]]}"),
    "zeros": (b'{"instances":[[', b"0,", b"0]]}"),
    "objects": (b'{"instances":[', b"{},", b"{}]}"),
    "open brackets": (b'{"instances":', b"[", b""),
    "names": (b"{", b'"a":0,', b'"a":0}'),
    "text": (b'{"instances":["', b"\\u00e9", b'"]}'),
    "a tensor of zeros": (
        b'{"inputs":[{"name":"images","shape":[1],"datatype":"FP32","data":[',
        b"0,",
        b"0]}]}",
    ),
}
"""Beginning of a body, repeated unit, end."""


def gzip_bombs() -> dict[str, Bomb]:
    """Return requests with gzip bodies of 10 MiB decompressed, expensive to parse, by name."""

    def sent(name: str) -> Bomb:
        is_tensor = name == "a tensor of zeros"
        path = "/v2/models/digits/infer" if is_tensor else "/predict"
        headers = ("Content-Encoding: gzip", "Content-Type: application/json")
        return lambda: request("POST", path, _filled(*_PACKED[name]), *headers)

    return {**{name: sent(name) for name in _PACKED}, "empty elements": _empty_elements}


def _filled(begin: bytes, unit: bytes, close: bytes) -> bytes:
    count = (_BODY_BYTES - len(begin) - len(close) - 64) // len(unit)
    return gzip.compress(begin + unit * count + close, 9)


def _empty_elements() -> bytes:
    count = (_BODY_BYTES - 256) // 4
    size = {"binary_data_size": 4 * count}
    empty = {"name": "images", "shape": [1, count], "datatype": "BYTES", "parameters": size}
    header = orjson.dumps({"inputs": [empty]})
    return request(
        "POST",
        "/v2/models/digits/infer",
        gzip.compress(header + bytes(4 * count), 9),
        "Content-Encoding: gzip",
        f"Inference-Header-Content-Length: {len(header)}",
    )
