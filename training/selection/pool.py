"""The pool: images without labels, from a folder or from a known data set, read row by row.

Knows no network. What a folder has that cannot be read is left out, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.errors import DataError, InputError
from model.images.preprocessing import InputSpec, open_upright
from training.config import TrainingConfig
from training.data.dataset import load_dataset
from training.data.directory_walk import read_tree
from training.data.excluded_files import LeftOut, printable
from training.data.image_inspection import (
    Inspected,
    Rejected,
    decode_image,
    inspect_file,
    inspect_pixels,
    to_pillow,
)
from training.data_options import FOLDER_PREFIX

Pixels = NDArray[np.uint8]

_FORMULA_STARTS = ("=", "+", "-", "@")


@dataclass(frozen=True)
class PoolImage:
    """One image of a pool."""

    pixels: Pixels
    """[C, H, W], as the network takes them."""
    inspected: Inspected
    """By which it is compared with other images."""


class Pool(Protocol):
    """A sequence of images; several threads may read it at once."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, as they are written into a list."""
        ...

    def read(self, row: int) -> PoolImage | Rejected:
        """Read an image, or say why it is left out."""
        ...

    def show(self, row: int, size: int) -> Image.Image:
        """Read an image for a person; a large one may be returned smaller, but not below `size`."""
        ...

    def leave_out(self, row: int, reason: Rejected) -> None:
        """Record that an image is left out."""
        ...

    def log_left_out(self) -> None:
        """Log what was left out."""
        ...


def open_pool(config: TrainingConfig, spec: InputSpec) -> Pool:
    """Open the pool that `config.data` names: a folder, or a data set without its test images.

    Raises:
        DataError: the data set cannot be read, or the folder has no files.
    """
    if config.data.startswith(FOLDER_PREFIX):
        return FolderPool(Path(config.data.removeprefix(FOLDER_PREFIX)), spec, config.max_pixels)
    data = load_dataset(config, spec)
    return ArrayPool(config.data, np.concatenate([data.train.images, data.validation.images]))


def _listed_name(file: Path) -> str:
    """Return a path that neither a spreadsheet takes for a formula nor a shell for an option."""
    name = printable(str(file))
    return f"./{name}" if name.startswith(_FORMULA_STARTS) else name


class ArrayPool:
    """Images in memory, uint8 [N, C, H, W], named by their row: `fashion-mnist/12`."""

    def __init__(self, name: str, images: Pixels) -> None:
        self.names = [f"{name}/{row}" for row in range(len(images))]
        self._images = images

    def read(self, row: int) -> PoolImage:
        """Return an image."""
        return PoolImage(self._images[row], inspect_pixels(self._images[row]))

    def show(self, row: int, size: int) -> Image.Image:
        """Return an image."""
        return to_pillow(self._images[row])

    def leave_out(self, row: int, reason: Rejected) -> None:
        """Do nothing, since no image is left out."""

    def log_left_out(self) -> None:
        """Do nothing, since no image is left out."""


class FolderPool:
    """The image files of a folder and of all folders in it, sorted by name."""

    def __init__(self, folder: Path, spec: InputSpec, max_pixels: int) -> None:
        self._left_out = LeftOut(folder)
        tree = read_tree(folder, self._left_out)
        self._files = [file for each in tree.walk() for file in each.files]
        if not self._files:
            raise DataError(
                f"{printable(str(folder))} has no files; name a folder of images with --pool "
                f"{FOLDER_PREFIX}PATH."
            )
        self.names = [_listed_name(file) for file in self._files]
        self._spec = spec
        self._max_pixels = max_pixels

    def read(self, row: int) -> PoolImage | Rejected:
        """Read and decode a file, or say why it is left out."""
        inspected = inspect_file(self._files[row], self._spec, self._max_pixels)
        if isinstance(inspected, Rejected):
            return inspected
        try:
            content = self._files[row].read_bytes()
            return PoolImage(decode_image(content, self._spec, self._max_pixels), inspected)
        except (InputError, OSError) as error:
            return Rejected("unreadable", str(error).partition(";")[0])

    def show(self, row: int, size: int) -> Image.Image:
        """Read and decode a file for a person.

        Raises:
            DataError: it can no longer be read.
        """
        try:
            return open_upright(self._files[row].read_bytes(), size, self._max_pixels)
        except OSError as error:
            raise DataError(
                f"{self.names[row]} can no longer be read ({error.strerror}); leave the pool as it "
                "is, and run again."
            ) from None

    def leave_out(self, row: int, reason: Rejected) -> None:
        """Record that a file is left out."""
        self._left_out.add(reason.reason, self._files[row], reason.detail)

    def log_left_out(self) -> None:
        """Log what was left out, by reason."""
        self._left_out.log()
