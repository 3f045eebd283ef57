"""Lists and decodes the images of a folder that has one sub-folder per class.

Knows only the splits that the folder has itself.
"""

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
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_MAX_WARNINGS = 20  # broken images that are logged by name

LabelledFiles = list[tuple[Path, int]]
"""Image files, each with the index of its class."""


@dataclass(frozen=True)
class ImageFolder:
    """The classes of a folder and the image files of each of its splits."""

    class_names: tuple[str, ...]
    """Sorted; a label is an index of this tuple."""
    splits: dict[str, LabelledFiles]
    """By name: `train`, and `validation` and `test` where the folder has them."""


def list_images(path: Path) -> ImageFolder:
    """List the images: `path/CLASS/*`, or `path/train/CLASS/*` beside `val/` or `test/`.

    Raises:
        DataError: there are no images, fewer than two classes, or a class that the training split
            lacks.
    """
    folders = {entry.name.casefold(): entry for entry in _subfolders(path)}
    own_splits = {split: folders[name] for name, split in _SPLIT_FOLDERS.items() if name in folders}
    if folders and folders.keys() <= _SPLIT_FOLDERS.keys() and "train" not in own_splits:
        raise DataError(
            f"{path} has data splits but no train/; add it, with one sub-folder a class."
        )
    if "train" not in own_splits or len(own_splits) < 2:
        own_splits = {"train": path}
    class_names = tuple(entry.name for entry in _subfolders(own_splits["train"]) if _images(entry))
    if len(class_names) == 1:
        raise DataError(
            f"{own_splits['train']} has images of one class only ({class_names[0]}); "
            "make a sub-folder for each of two or more classes."
        )
    if not class_names:
        raise DataError(
            f"{own_splits['train']} has no images; make one sub-folder a class, each with "
            "JPEG, PNG, WebP, GIF or BMP files."
        )
    return ImageFolder(
        class_names,
        {split: _labelled(folder, class_names) for split, folder in own_splits.items()},
    )


def decode_files(
    files: LabelledFiles, spec: InputSpec, on_disk: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode every file with the preprocessing of the service; log and skip broken files.

    Args:
        files: the images and their labels.
        spec: size, channels and resize rule of the arrays.
        on_disk: folder for a memory-mapped array; None keeps the images in memory.

    Returns:
        images uint8 [N, C, H, W] and labels int64 [N]. The file under `on_disk` is unlinked, so
        its space is freed when the process ends.

    Raises:
        DataError: every file is broken, or the disk is full.
    """
    images = _allocate((len(files), spec.channels, spec.height, spec.width), on_disk)

    def decode_row(row: int) -> str | None:
        try:
            images[row] = decode_image(files[row][0].read_bytes(), spec)
        except (InputError, OSError) as error:
            return f"{files[row][0]}: {error}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(decode_row, range(len(files)))
        problems = list(track(rows, "Decoding images", total=len(files), transient=True))
    good = np.array([row for row, problem in enumerate(problems) if problem is None], np.int64)
    _log_broken([problem for problem in problems if problem is not None], len(files))
    labels = np.array([label for _, label in files], np.int64)[good]
    for target, source in enumerate(good):  # closes the gaps in place, as the array may be on disk
        if target != source:
            images[target] = images[source]
    return images[: len(good)], labels


def _log_broken(problems: list[str], count: int) -> None:
    for problem in problems[:_MAX_WARNINGS]:
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
        with tempfile.NamedTemporaryFile(dir=on_disk) as file:  # unlinked; the mapping keeps it
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
            return np.memmap(file.name, np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{np.prod(shape) / 2**30:.1f} GiB of images fit neither into --max-memory-gib nor "
            f"into {on_disk} ({error.strerror}); free space or choose a smaller --image-size."
        ) from None


def _labelled(folder: Path, class_names: tuple[str, ...]) -> LabelledFiles:
    labels = {name: label for label, name in enumerate(class_names)}
    files: LabelledFiles = []
    for entry in _subfolders(folder):
        images = _images(entry)
        if images and entry.name not in labels:
            raise DataError(f"{entry} is a class that the training split lacks; add it there.")
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
