"""Judges each file of a folder by its content before any is trained on.

A file is read and decoded to a small thumbnail with the decoder of the service; one that cannot be
decoded is left out with the reason. Knows no classes.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from model.container_resources import available_processors
from model.errors import ImageTooLargeError, InputError
from model.images.file_formats import FORMATS
from model.images.preprocessing import InputSpec, fit_image, open_all
from training.data.excluded_files import LeftOut, Reason
from training.data.image_file_type import file_format, image_format

THUMBNAIL_SIZE = 32
_THUMBNAIL = InputSpec(channels=1, height=THUMBNAIL_SIZE, width=THUMBNAIL_SIZE, resize="stretch")
_MAX_FILE_BYTES = 2**28  # a larger file, such as a video, is not read into memory,
_MAX_BYTES_PER_PIXEL = 4  # unless it is an image that may have so many pixels
_LARGE_PIXELS = 2**25  # images above this size are decoded one at a time, to save memory
_MAX_ASPECT = 50  # above it, it is tried whether an image can be brought to the wanted size
_MAX_ENLARGEMENT = 16  # of the shorter side; beyond it, an image shows next to nothing
_decoding_large_image = Lock()

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Inspected:
    """An image that can be decoded."""

    digest: bytes
    """SHA-256 of the file."""
    thumbnail: NDArray[np.uint8]
    """The whole image, grey, [32, 32]."""


@dataclass(frozen=True)
class Rejected:
    """A file that is left out, with the reason and what else there is to say."""

    reason: Reason
    detail: str = ""


def inspect_files(
    paths: Sequence[Path], spec: InputSpec, max_pixels: int, left_out: LeftOut
) -> list[Inspected | None]:
    """Inspect all files in threads; None stands for a file that was left out.

    Args:
        paths: the files.
        spec: what the images will be decoded to.
        max_pixels: limit on the height x width of an image.
        left_out: records the files that are left out.
    """

    def inspect(path: Path) -> Inspected | Rejected:
        return inspect_file(path, spec, max_pixels)

    results = map_on_all_cores(inspect, paths, "Inspecting files")
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Rejected):
            left_out.add(result.reason, path, result.detail)
    return [result if isinstance(result, Inspected) else None for result in results]


def inspect_file(path: Path, spec: InputSpec, max_pixels: int) -> Inspected | Rejected:
    """Read and decode one file, or say why it cannot be trained on."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            name = file_format(path)
            if name is None:
                return Rejected("not_image")
            if size > _MAX_BYTES_PER_PIXEL * max_pixels:
                return Rejected("too_large", f"{name}, {size / 2**20:,.0f} MiB")
        data = path.read_bytes()
    except OSError as error:
        return Rejected("unreadable", error.strerror or "")
    if not data:
        return Rejected("empty")
    try:
        thumbnail = decode_image(data, _THUMBNAIL, max_pixels)[0]
        width, height = _size(data)
        if min(width, height) * _MAX_ENLARGEMENT < min(spec.width, spec.height):
            return Rejected("too_small", f"{width} x {height} pixels")
        if max(width, height) > _MAX_ASPECT * min(width, height):
            decode_image(data, spec, max_pixels)
    except (InputError, MemoryError) as error:
        return _rejected(data, error)
    return Inspected(hashlib.sha256(data).digest(), thumbnail)


def inspect_pixels(image: NDArray[np.uint8]) -> Inspected:
    """Return by what an image in memory, uint8 [C, H, W], is compared; its pixels are the file."""
    (grey,) = fit_image(to_pillow(image), _THUMBNAIL)
    return Inspected(hashlib.sha256(image.tobytes()).digest(), grey)


def to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    """Return an image, uint8 [C, H, W], as one of Pillow: grey or RGB."""
    grey = len(image) == 1
    return Image.fromarray(image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0)))


def decode_image(data: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one image to uint8 [C, H, W] as the service does, within a limit on its pixels.

    Raises:
        InputError: the bytes are no image that can be decoded, or it has too many pixels.
    """
    image = open_all([data], max_pixels)
    if image.pixels <= _LARGE_PIXELS:
        return np.asarray(image.load(spec)[0])
    with _decoding_large_image:
        return np.asarray(image.load(spec)[0])


def map_on_all_cores(
    function: Callable[[S], T], items: Sequence[S], title: str, threads: int | None = None
) -> list[T]:
    """Call a function for each item in threads, with a progress bar; return the results.

    threads: how many; one for each processor that this process may use if left out.
    """
    with ThreadPoolExecutor(threads or available_processors()) as pool:
        return list(
            track(
                pool.map(function, items),
                title,
                total=len(items),
                transient=True,
                disable=not sys.stdout.isatty(),
            )
        )


def _size(data: bytes) -> tuple[int, int]:
    """Return the width and the height of an image, in pixels."""
    (image,) = open_all([data], sys.maxsize).images
    return image.width, image.height


def _rejected(data: bytes, error: Exception) -> Rejected:
    name = image_format(io.BytesIO(data))
    sentence = str(error).partition(";")[0].rstrip(".")  # what follows is for clients of the API
    if isinstance(error, ImageTooLargeError | MemoryError):
        return Rejected("too_large", sentence or "not enough memory")
    if name is None:
        return Rejected("not_image")
    if name not in FORMATS:
        return Rejected("unsupported", name)
    is_whole = not ("corrupt" in sentence or "not an image" in sentence)
    return Rejected("unsupported" if is_whole else "damaged", sentence)
