"""Decodes the files of an image folder into one array, in memory or on disk.

Judges no file: all of them were inspected before.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError, InputError
from model.images.preprocessing import InputSpec
from training.data.excluded_files import printable
from training.data.image_inspection import decode_image, map_on_all_cores


def decode_files(
    files: Sequence[Path], spec: InputSpec, max_pixels: int, on_disk: Path | None = None
) -> NDArray[np.uint8]:
    """Decode every file with the preprocessing of the service.

    Args:
        files: images that were inspected.
        spec: size, channels and resize rule of the array.
        max_pixels: limit on the height x width of an image.
        on_disk: folder for a memory-mapped array; None keeps the images in memory.

    Returns:
        uint8 [N, C, H, W]. The file under `on_disk` is unlinked, so its space is freed when the
        process ends.

    Raises:
        DataError: a file changed since it was inspected or cannot be brought to this size, or the
            disk is full.
    """
    images = allocate_images((len(files), spec.channels, spec.height, spec.width), on_disk)

    def decode_row(row: int) -> None:
        try:
            with reading_again(files[row]):
                images[row] = decode_image(files[row].read_bytes(), spec, max_pixels)
        except InputError as error:
            sentence = str(error).partition(";")[0].rstrip(".")
            raise DataError(
                f"{printable(str(files[row]))} cannot be trained on ({sentence}); remove it."
            ) from None

    map_on_all_cores(decode_row, range(len(files)), "Decoding images")
    return images


@contextmanager
def reading_again(file: Path) -> Iterator[None]:
    """Raise DataError where `file`, which was inspected before, cannot be read any more."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{printable(str(file))} could be read before and cannot any more "
            f"({error.strerror}); leave the folder as it is, and start again."
        ) from None


def allocate_images(shape: tuple[int, ...], on_disk: Path | None) -> NDArray[np.uint8]:
    """Return an array that is not filled, in memory or in an unlinked file under `on_disk`.

    Raises:
        DataError: the disk is full.
    """
    if on_disk is None:
        return np.empty(shape, np.uint8)
    try:
        on_disk.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=on_disk) as file:  # unlinked; the mapping keeps it
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
            return np.memmap(file.name, np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{np.prod(shape) / 2**30:.1f} GiB of images fit neither into --max-memory-gib nor "
            f"into {on_disk} ({error.strerror}); free space or choose a smaller --image-size."
        ) from None
