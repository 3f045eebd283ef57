"""Shares the images of a data set between the processes of one machine: one copy, memory-mapped.

The first process of the machine writes them into files, all map these, and the files are unlinked
at once, so that nothing is left however a process ends. Knows no network and no batch.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from model.errors import DataError
from model.images.preprocessing import InputSpec
from training.data.dataset import Dataset, DatasetDefaults, Split
from training.distributed.process_group import Processes

_SPLITS = ("train", "validation")


class _Description(BaseModel):
    """Where the images are, and what helps to fit needs beside them."""

    folder: Path
    name: str
    class_names: tuple[str, ...]
    input: InputSpec
    defaults: DatasetDefaults


class _Opened(BaseModel):
    """A process has mapped the files."""


def share_dataset(data: Dataset, processes: Processes, cache: Path) -> Dataset:
    """Give the training and validation images to the other processes of this machine.

    Args:
        data: with its images in memory or mapped.
        processes: this one is the first of its machine.
        cache: folder that has room for a copy of the images meanwhile.

    Returns:
        the data set with its training and validation images mapped from the shared files.

    Raises:
        DataError: the disk of `cache` is full or cannot be written.
    """
    if processes.local_count == 1:
        return data
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="shared-images-") as name:
            folder = Path(name)
            train, validation = (_write(data, each, folder) for each in _SPLITS)
            data = replace(data, train=train, validation=validation)
            processes.tell(_topic(processes), _describe(data, folder))
            for local_rank in range(1, processes.local_count):
                processes.hear(_topic(processes, local_rank), _Opened)
    except OSError as error:
        raise DataError(
            f"The images cannot be shared between processes in {cache} "
            f"({error.strerror or error}); free space, or choose another folder with --cache-dir."
        ) from error
    return data


def receive_dataset(processes: Processes) -> Dataset:
    """Return the data set that the first process of this machine shares, without test images."""
    shared = processes.hear(_topic(processes), _Description)
    train, validation = (_open(shared.folder, split) for split in _SPLITS)
    processes.tell(_topic(processes, processes.local_rank), _Opened())
    return Dataset(
        name=shared.name,
        class_names=shared.class_names,
        input=shared.input,
        train=train,
        validation=validation,
        test=validation.take(np.arange(0)),
        defaults=shared.defaults,
    )


def _describe(data: Dataset, folder: Path) -> _Description:
    return _Description(
        folder=folder.absolute(),
        name=data.name,
        class_names=data.class_names,
        input=data.input,
        defaults=data.defaults,
    )


def _write(data: Dataset, name: str, folder: Path) -> Split:
    """Write one split into `folder`; return it with the images mapped from there."""
    split: Split = getattr(data, name)
    np.save(_images_file(folder, name), split.images)
    np.save(_labels_file(folder, name), split.labels)
    return replace(split, images=_map(_images_file(folder, name)))


def _open(folder: Path, name: str) -> Split:
    return Split(_map(_images_file(folder, name)), np.load(_labels_file(folder, name)))


def _map(file: Path) -> NDArray[np.uint8]:
    """Map the images; a private mapping, which torch takes without a warning, shares all pages."""
    images: NDArray[np.uint8] = np.load(file, mmap_mode="c", allow_pickle=False)
    return images


def _images_file(folder: Path, name: str) -> Path:
    return folder / f"{name}-images.npy"


def _labels_file(folder: Path, name: str) -> Path:
    return folder / f"{name}-labels.npy"


def _topic(processes: Processes, local_rank: int | None = None) -> str:
    """Return the topic of the description, or of the answer of one process to it."""
    topic = f"images of machine {processes.machine}"
    return topic if local_rank is None else f"{topic} opened by {local_rank}"
