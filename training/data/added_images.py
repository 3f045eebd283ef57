"""Adds labelled images of a folder to the training images of a data set, and to no other split.

So the validation and test images stay those of the trainings before. An image whose picture they
show is left out, and so is one that is a training image already. Knows no network.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError, SettingsError
from training.config import TrainingConfig
from training.data.dataset import AddedCounts, Dataset, Split
from training.data.duplicates import TooAlikeError, duplicate_groups
from training.data.excluded_files import MAX_NAMES, LeftOut, counted, printable
from training.data.image_decoding import allocate_images, decode_files
from training.data.image_folder_layout import LabelledFiles, list_labelled
from training.data.image_inspection import Inspected, inspect_files, inspect_pixels
from training.data_options import FOLDER_PREFIX

logger = logging.getLogger(__name__)

_HELD_OUT_AT_ONCE = 2048
"""Validation or test images that are compared at once; each is compared with each."""


def add_images(data: Dataset, config: TrainingConfig) -> Dataset:
    """Return `data` with the images of the folder `config.add` among its training images.

    Raises:
        DataError: the folder has no class folders, a class that the data lacks, or no image that
            can be added.
        SettingsError: the validation images are the training images.
    """
    if config.add is None:
        return data
    if data.is_cross_fitted:
        raise SettingsError(
            "--add: a head on a frozen backbone is calibrated on its training images, and those "
            "that were chosen for labelling are unlike others; use --learn fine-tuned or "
            "--backbone none."
        )
    folder = Path(config.add.removeprefix(FOLDER_PREFIX))
    left_out = LeftOut(folder)
    try:
        read = _read(folder, data, config, left_out)
        added = _not_trained_on(data, _not_held_out(data, read, folder, left_out), folder, left_out)
    finally:
        left_out.log()
    if not len(added):
        raise DataError(
            f"{printable(str(folder))} has no image that can be added; name another with --add."
        )
    labels = Counter(data.class_names[label] for label in added.labels.tolist())
    logger.info("Added to the training images: %s.", counted(len(added), "image"))
    on_disk = config.cache_dir if isinstance(data.train.images, np.memmap) else None
    counts = AddedCounts(dict(sorted(labels.items())), left_out.counts())
    return replace(data, train=_joined(data.train, added, on_disk), added=counts)


def _read(folder: Path, data: Dataset, config: TrainingConfig, left_out: LeftOut) -> Split:
    """Return the images of the folder that can be read."""
    listed = list_labelled(folder, data.class_names, left_out)
    paths = [path for path, _ in listed]
    inspected = inspect_files(paths, data.input, config.max_pixels, left_out)
    files: LabelledFiles = [
        file for file, image in zip(listed, inspected, strict=True) if image is not None
    ]
    return Split(
        decode_files([path for path, _ in files], data.input, config.max_pixels),
        np.array([label for _, label in files], np.int64),
        tuple(str(path.relative_to(folder)) for path, _ in files),
    )


def _not_held_out(data: Dataset, added: Split, folder: Path, left_out: LeftOut) -> Split:
    """Leave out the images whose picture a validation or test image shows."""
    is_copy = np.zeros(len(added), np.bool_)
    images = list(map(inspect_pixels, added.images))
    for split in (data.validation, data.test):
        for start in range(0, len(split), _HELD_OUT_AT_ONCE):
            held_out = split.images[start : start + _HELD_OUT_AT_ONCE]
            is_copy |= _are_copies(images, list(map(inspect_pixels, held_out)))
    assert added.names is not None
    for row in np.flatnonzero(is_copy).tolist():
        left_out.add("duplicate", folder / added.names[row])
    return added.take(np.flatnonzero(~is_copy))


def _not_trained_on(data: Dataset, added: Split, folder: Path, left_out: LeftOut) -> Split:
    """Leave out the images that are training images, pixel for pixel and with the same label."""
    assert added.names is not None
    trained = _labels_by_digest(data.train)
    labels = [trained.get(_digest(image), set()) for image in added.images]
    is_known = np.zeros(len(added), np.bool_)
    contradicting = []
    for row, label in enumerate(added.labels.tolist()):
        path = folder / added.names[row]
        if label in labels[row]:
            is_known[row] = True
            left_out.add("trained_on", path)
        elif labels[row]:
            contradicting.append(left_out.name(path))
    _warn_of_other_labels(contradicting)
    return added.take(np.flatnonzero(~is_known))


def _labels_by_digest(split: Split) -> dict[bytes, set[int]]:
    labels: defaultdict[bytes, set[int]] = defaultdict(set)
    for image, label in zip(split.images, split.labels.tolist(), strict=True):
        labels[_digest(image)].add(label)
    return labels


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _warn_of_other_labels(names: list[str]) -> None:
    if names:
        logger.warning(
            "Warning: added beside an equal training image of another class (%d): %s%s; one of the "
            "labels is wrong, so remove that image.",
            *(len(names), ", ".join(names[:MAX_NAMES]), ", ..." if names[MAX_NAMES:] else ""),
        )


def _are_copies(added: list[Inspected], held_out: list[Inspected]) -> NDArray[np.bool_]:
    """Return whether each added image shows the picture of one that is held out."""
    if not added:
        return np.zeros(0, np.bool_)
    try:
        groups = duplicate_groups([*added, *held_out])
    except TooAlikeError:
        logger.warning("Too many pictures are alike; only equal ones were taken as duplicates.")
        groups = duplicate_groups([*added, *held_out], perceptual=False)
    copies: NDArray[np.bool_] = np.isin(groups[: len(added)], groups[len(added) :])
    return copies


def _joined(train: Split, added: Split, on_disk: Path | None) -> Split:
    count = len(train) + len(added)
    images = allocate_images((count, *train.images.shape[1:]), on_disk)
    images[: len(train)], images[len(train) :] = train.images, added.images
    names = None
    if train.names is not None and added.names is not None:
        names = (*train.names, *map(printable, added.names))
    return Split(images, np.concatenate([train.labels, added.labels]), names)
