"""Loads a named data set and splits it into training, validation and test images in memory.

The names are digits, mnist, fashion-mnist, kmnist, cifar-10 and folder:PATH. Images are decoded
once, so the training loop never waits for a loader. Knows no network.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.errors import DataError
from model.images.preprocessing import InputSpec, fit_image
from training.config import FOLDER_PREFIX, Augmentation, TrainingConfig
from training.data import archives, image_folder
from training.data.image_folder import ImageFolder, LabelledFiles

logger = logging.getLogger(__name__)

_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_DIGITS = tuple("0123456789")
_KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CIFAR = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

_VALIDATION_SHARE = 0.1
_IDX_VALIDATION_SHARE = 1 / 12  # 5,000 of the 60,000 training images
_FOLDER_SIZE = 64
_MIN_IMAGES = 3  # so that each split can have one image of the class
_ALEXNET_SIZE = 224


@dataclass(frozen=True)
class Split:
    """The images and labels of one data split: training, validation or test."""

    images: NDArray[np.uint8]
    """[N, C, H, W]; in memory, or mapped from a file."""
    labels: NDArray[np.int64]
    """[N], indices of class names."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return a copy of the images and labels at indices `rows`, int64 [M]."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class DatasetDefaults:
    """The training options that a data set has where the user sets none."""

    epochs: int
    batch_size: int
    augmentation: Augmentation
    shift: float
    """Largest translation of an augmented image, in pixels; a crop moves by whole ones."""
    threads: int | None = None
    """Processor threads; 1 for steps too small to parallelise, None for all cores."""
    weight_averaging: float = 0.0
    """Share of the steps so far whose weights are averaged; 0 for the last weights."""


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits with the class names, the input format and the default options."""

    name: str
    class_names: tuple[str, ...]
    input: InputSpec
    train: Split
    validation: Split
    test: Split
    defaults: DatasetDefaults

    def manifest_entry(self) -> dict[str, object]:
        """Return `data` of the manifest: name, split sizes and a SHA-256 of all content."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return {
            "name": self.name,
            "sha256": digest.hexdigest(),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def load_dataset(config: TrainingConfig) -> Dataset:
    """Load the data set that `config.data` names, from disk or by a verified download.

    Raises:
        DataError: the data set cannot be read or downloaded, is damaged, or has too few images.
    """
    if config.data.startswith(FOLDER_PREFIX):
        return _from_folder(config, Path(config.data.removeprefix(FOLDER_PREFIX)))
    if config.data == "digits":
        data = _digits(config)
    elif config.data == "cifar-10":
        data = _cifar(config)
    else:
        data = _idx(config)
    return _resize_dataset(data, config)


def stratified_split(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a random `share` of each class, at least one image and at most all but one.

    Args:
        labels: [N].
        share: of each class to draw, 0..1.
        seed: of the draw.

    Returns:
        (rest, drawn), both sorted indices of `labels`; together they are 0..N-1.

    Raises:
        DataError: a class has a single image.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise DataError("A class has a single image; give it at least 3.")
        drawn.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    drawn_rows = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), drawn_rows), drawn_rows


def _digits(config: TrainingConfig) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and used only here

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    whole = Split(pixels, scans.target.astype(np.int64))
    rest, test = stratified_split(whole.labels, config.test_share, config.split_seed)
    return _with_validation(
        Dataset(
            name="digits (scikit-learn's handwritten digits)",
            class_names=_DIGITS,
            input=InputSpec(channels=1, height=8, width=8, resize="pad"),
            train=whole.take(rest),
            validation=whole.take(rest[:0]),
            test=whole.take(test),
            defaults=DatasetDefaults(60, 64, "affine", shift=0.6, threads=1, weight_averaging=0.2),
        ),
        (config.validation_share or _VALIDATION_SHARE) / (1 - config.test_share),
        config.split_seed,
    )


def _idx(config: TrainingConfig) -> Dataset:
    known = {
        "mnist": (_DIGITS, DatasetDefaults(12, 128, "shift", 2)),
        "kmnist": (_KMNIST, DatasetDefaults(12, 128, "shift", 2)),
        "fashion-mnist": (_FASHION, DatasetDefaults(34, 128, "flip-crop", 2)),
    }
    class_names, defaults = known[config.data]
    train, test = (
        Split(*archives.read_idx(config.data, split, config.data_dir, config.cache_dir))
        for split in ("train", "t10k")
    )
    data = Dataset(
        name=config.data,
        class_names=class_names,
        input=InputSpec(channels=1, height=28, width=28, resize="pad"),
        train=train,
        validation=train.take(np.arange(0)),
        test=test,
        defaults=defaults,
    )
    share = config.validation_share or _IDX_VALIDATION_SHARE
    return _with_validation(data, share, config.split_seed)


def _cifar(config: TrainingConfig) -> Dataset:
    train, test = (
        Split(*arrays) for arrays in archives.read_cifar(config.data_dir, config.cache_dir)
    )
    name = "cifar-10"
    if (len(train), len(test)) != archives.CIFAR_SIZES:
        name = f"part of cifar-10 ({len(train):,} training and {len(test):,} test images)"
        logger.warning("The data folder holds only a %s; its accuracy is not CIFAR-10's.", name)
    data = Dataset(
        name=name,
        class_names=_CIFAR,
        input=InputSpec(channels=3, height=32, width=32, resize="crop"),
        train=train,
        validation=train.take(np.arange(0)),
        test=test,
        defaults=DatasetDefaults(epochs=40, batch_size=128, augmentation="flip-crop", shift=4),
    )
    return _with_validation(data, config.validation_share or _VALIDATION_SHARE, config.split_seed)


def _from_folder(config: TrainingConfig, path: Path) -> Dataset:
    size = config.image_size or (_ALEXNET_SIZE if config.preset == "alexnet" else _FOLDER_SIZE)
    spec = InputSpec(
        channels=config.channels or 3,
        height=size,
        width=size,
        resize=config.resize or "crop",
    )
    folder = image_folder.list_images(path)
    splits = _split_files(folder, config)
    size_bytes = sum(map(len, splits.values())) * int(np.prod(_shape(spec)))
    on_disk = config.cache_dir if size_bytes > config.max_memory_gib * 2**30 else None
    decoded = {
        name: Split(*image_folder.decode_files(files, spec, on_disk))
        for name, files in splits.items()
    }
    _require_classes(decoded["train"], folder.class_names, path)
    return Dataset(
        name=path.resolve().name,
        class_names=folder.class_names,
        input=spec,
        defaults=DatasetDefaults(40, 64, "flip-crop", shift=max(1, size // 8)),
        **decoded,
    )


def _split_files(folder: ImageFolder, config: TrainingConfig) -> dict[str, LabelledFiles]:
    """Draw the splits that the folder lacks from its training files, before any is decoded."""
    splits = dict(folder.splits)
    for label, name in enumerate(folder.class_names):
        count = sum(each == label for _, each in splits["train"])
        if count < _MIN_IMAGES:
            raise DataError(
                f"Class {name!r} has {count} image(s) to train on; give it at least {_MIN_IMAGES}."
            )
    test_share = 0.0 if "test" in splits else config.test_share
    validation_share = config.validation_share or _VALIDATION_SHARE
    shares = {"test": test_share, "validation": validation_share / (1 - test_share)}
    for split, share in shares.items():
        if split not in splits:
            files = splits["train"]
            labels = np.array([label for _, label in files], np.int64)
            rest, drawn = stratified_split(labels, share, config.split_seed)
            splits["train"] = [files[row] for row in rest]
            splits[split] = [files[row] for row in drawn]
    return splits


def _with_validation(data: Dataset, share: float, seed: int) -> Dataset:
    """Move a stratified draw of the training images into the validation split."""
    rest, drawn = stratified_split(data.train.labels, share, seed)
    return replace(data, train=data.train.take(rest), validation=data.train.take(drawn))


def _require_classes(train: Split, class_names: Sequence[str], path: Path) -> None:
    for name, count in zip(
        class_names, np.bincount(train.labels, minlength=len(class_names)), strict=True
    ):
        if count == 0:
            raise DataError(f"None of the training images of class {name!r} in {path} is readable.")


def _resize_dataset(data: Dataset, config: TrainingConfig) -> Dataset:
    """Convert a data set of fixed size to the size, channels and resize rule of `config`."""
    size = config.image_size or (_ALEXNET_SIZE if config.preset == "alexnet" else None)
    wanted = InputSpec(
        channels=config.channels or data.input.channels,
        height=size or data.input.height,
        width=size or data.input.width,
        resize=config.resize or data.input.resize,
    )
    if _shape(wanted) == _shape(data.input):
        return replace(data, input=wanted)
    shift = data.defaults.shift * wanted.width / data.input.width
    return replace(
        data,
        input=wanted,
        train=_resize_split(data.train, wanted),
        validation=_resize_split(data.validation, wanted),
        test=_resize_split(data.test, wanted),
        defaults=replace(data.defaults, shift=shift),
    )


def _resize_split(split: Split, spec: InputSpec) -> Split:
    images = [fit_image(_to_pillow(image), spec) for image in split.images]
    return Split(np.stack(images), split.labels)


def _to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    grey = len(image) == 1
    return Image.fromarray(image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _shape(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width
