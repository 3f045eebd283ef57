"""A folder of images, one sub-folder a class -> arrays. Knows no splits but the folder's own."""

import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from model.errors import DataError, InputError
from model.images.preprocessing import InputSpec
from model.images.preprocessing import decode as decode_image

logger = logging.getLogger(__name__)

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_NAMED_AT_MOST = 20

Labelled = list[tuple[Path, int]]


@dataclass(frozen=True)
class Tree:
    """Class names, sorted, and the image files of each part with their labels."""

    class_names: tuple[str, ...]
    parts: dict[str, Labelled]


def find(path: Path) -> Tree:
    """List the images: `path/CLASS/*`, or `path/train/CLASS/*` beside `val/` or `test/`.

    Raises:
        DataError: no images, or a class that the training part does not have.
    """
    folders = {entry.name.casefold(): entry for entry in _subfolders(path)}
    own_parts = {part: folders[name] for name, part in _PARTS.items() if name in folders}
    if folders and folders.keys() <= _PARTS.keys() and "train" not in own_parts:
        raise DataError(f"{path} has parts but no train/; add it, with one sub-folder a class.")
    if "train" not in own_parts or len(own_parts) < 2:
        own_parts = {"train": path}
    class_names = tuple(entry.name for entry in _subfolders(own_parts["train"]) if _images(entry))
    if len(class_names) == 1:
        raise DataError(
            f"{own_parts['train']} has images of one class only ({class_names[0]}); "
            "make a sub-folder for each of two or more classes."
        )
    if not class_names:
        raise DataError(
            f"{own_parts['train']} has no images; make one sub-folder a class, each with "
            "JPEG, PNG, WebP, GIF or BMP files."
        )
    return Tree(
        class_names,
        {part: _labelled(folder, class_names) for part, folder in own_parts.items()},
    )


def decode(
    files: Labelled, spec: InputSpec, on_disk: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode every file as the service would; broken ones are named, counted and skipped.

    Returns:
        images uint8 [N, C, H, W], in memory, or in a file under `on_disk` that vanishes with the
        process; labels int64 [N].

    Raises:
        DataError: every file is broken, or the disk is full.
    """
    images = _allocate((len(files), spec.channels, spec.height, spec.width), on_disk)

    def one(row: int) -> str | None:
        try:
            images[row] = decode_image(files[row][0].read_bytes(), spec)
        except (InputError, OSError) as error:
            return f"{files[row][0]}: {error}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(one, range(len(files)))
        problems = list(track(rows, "Decoding images", total=len(files), transient=True))
    good = np.array([row for row, problem in enumerate(problems) if problem is None], np.int64)
    _report([problem for problem in problems if problem is not None], len(files))
    labels = np.array([label for _, label in files], np.int64)[good]
    for target, source in enumerate(good):  # close the gaps in place: the array may be on disk
        if target != source:
            images[target] = images[source]
    return images[: len(good)], labels


def _report(problems: list[str], count: int) -> None:
    for problem in problems[:_NAMED_AT_MOST]:
        logger.warning("Skipped %s", problem)
    if problems:
        logger.warning("Skipped %d broken image(s) of %d.", len(problems), count)
    if len(problems) == count:
        raise DataError("None of the images can be read; see the warnings above.")


def _allocate(shape: tuple[int, ...], on_disk: Path | None) -> NDArray[np.uint8]:
    if on_disk is None:
        return np.empty(shape, np.uint8)
    try:
        on_disk.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=on_disk) as file:  # unlinked, kept by the mapping
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
            return np.memmap(file.name, np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{np.prod(shape) / 2**30:.1f} GiB of images fit neither into --max-memory-gib nor "
            f"into {on_disk} ({error.strerror}); free space or choose a smaller --image-size."
        ) from None


def _labelled(folder: Path, class_names: tuple[str, ...]) -> Labelled:
    labels = {name: label for label, name in enumerate(class_names)}
    files: Labelled = []
    for entry in _subfolders(folder):
        images = _images(entry)
        if images and entry.name not in labels:
            raise DataError(f"{entry} is a class that the training part lacks; add it there.")
        files += [(image, labels[entry.name]) for image in images]
    if not files:
        raise DataError(f"{folder} has no images; fill it or remove it.")
    return files


def _subfolders(path: Path) -> list[Path]:
    return sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
