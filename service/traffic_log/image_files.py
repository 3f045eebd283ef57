"""Images of the traffic log as files, named by their digests. Knows no line.

An image of 8-bit pixels is a PNG file that people can look at; any other one is an array (.npy).
Reading either gives the very array that was written.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.errors import DropserveError
from model.images.preprocessing import to_float
from service.traffic_log.traffic_record import image_digest

Floats = NDArray[np.float32]

_GREY, _RGB = 1, 3
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FAST_COMPRESSION = 1
_MAX_FILE_BYTES = 2**30


class StoredImageError(DropserveError):
    """The file of an image is not the image that its name says."""


def encode_image(image: Floats) -> tuple[str, bytes]:
    """Encode an image, float32 [C, H, W]: return the suffix and the bytes of its file."""
    stream = io.BytesIO()
    pixels = _as_bytes(image)
    if pixels is not None and len(image) in (_GREY, _RGB):
        plane = pixels[0] if len(image) == _GREY else pixels.transpose(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(plane))
        picture.save(stream, "PNG", compress_level=_FAST_COMPRESSION)
        return ".png", stream.getvalue()
    np.save(stream, image, allow_pickle=False)
    return ".npy", stream.getvalue()


def write_image(folder: Path, digest: str, suffix: str, content: bytes) -> bool:
    """Write the file of an image; return False if it is there already.

    Raises:
        OSError: it cannot be written; then there is no file.
    """
    path = folder / f"{digest}{suffix}"
    try:
        descriptor = os.open(path, _FLAGS, 0o600)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def read_image(folder: Path, digest: str) -> Floats | None:
    """Return the image with a digest, float32 [C, H, W]; None: it was not stored.

    Raises:
        StoredImageError: the file is damaged.
    """
    readers: dict[str, Callable[[bytes], Floats]] = {".png": _from_png, ".npy": _from_npy}
    for suffix, decode in readers.items():
        path = folder / f"{digest}{suffix}"
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoredImageError(f"{path} cannot be read ({error.strerror}).") from None
        try:
            image = decode(content)
        except Exception as error:  # Pillow's decoders raise anything
            raise StoredImageError(f"{path} is damaged ({error}).") from None
        if image_digest(image) != digest:
            raise StoredImageError(f"{path} is not the image that its name says.")
        return image
    return None


def _as_bytes(image: Floats) -> NDArray[np.uint8] | None:
    """Return the 8-bit pixels that an image was scaled from; None: it was not."""
    pixels = np.rint(image * np.float32(255)).astype(np.uint8)
    scaled = to_float(pixels)  # compared bit by bit, since -0.0 equals 0.0
    same = scaled.tobytes() == np.ascontiguousarray(image).tobytes()
    return pixels if same else None


def _from_png(content: bytes) -> Floats:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        pixels = np.asarray(picture)
    return to_float(pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _from_npy(content: bytes) -> Floats:
    image: Floats = np.load(io.BytesIO(content), allow_pickle=False)
    return image
