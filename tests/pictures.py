"""Encodes images as files, numbers, forms and JSON bodies, as clients send them."""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def encode(
    pixels: Pixels, file_format: str = "PNG", mode: str | None = None, **options: Any
) -> bytes:
    """Encode grey [H, W] or RGB [H, W, 3] pixels, converted to a Pillow mode where one is named."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, file_format, **options)
    return file.getvalue()


def encode_16_bits(pixels: Pixels) -> bytes:
    """Encode grey [H, W] pixels as a PNG of 16 bits per pixel; 255 becomes 65,535."""
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue()


def numbers(pixels: Pixels) -> Any:
    """Convert pixels to nested lists of numbers in 0..1."""
    return (pixels / 255).tolist()


def instances(images: Sequence[Any]) -> bytes:
    """Build a JSON body with `instances`; bytes become base64, other images are kept."""
    return orjson.dumps({"instances": [_instance(image) for image in images]})


def bomb(width: int, height: int) -> bytes:
    """Build a PNG file of a few bytes that declares width x height pixels but contains none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def form(*files: bytes, name: str = "file") -> list[tuple[str, tuple[str, bytes]]]:
    """Build the argument `files` of httpx: a form with image files."""
    return [(name, ("image.png", data)) for data in files]


def _instance(image: Any) -> Any:
    return {"b64": base64.b64encode(image).decode()} if isinstance(image, bytes) else image


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
