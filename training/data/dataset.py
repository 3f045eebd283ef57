"""Loads a named data set and splits it into training, validation and test images in memory.

The names are digits, mnist, fashion-mnist, kmnist, cifar-10 and folder:PATH. Images are decoded
once, so the training loop never waits for a loader. Knows no network.
"""

import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.images.preprocessing import InputSpec, fit_image
from training.config import Augmentation, TrainingConfig
from training.data import published_archives
from training.data.excluded_files import printable
from training.data.folder_splits import FolderSplits, SplitOptions, split_folder
from training.data.image_decoding import decode_files
from training.data.image_folder_layout import LabelledFiles
from training.data.image_inspection import to_pillow
from training.data.stratified_split import stratified_split
from training.data_options import FOLDER_PREFIX

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
_LARGE_SIZE = 224


@dataclass(frozen=True)
class Split:
    """The images and labels of one data split: training, validation or test."""

    images: NDArray[np.uint8]
    """[N, C, H, W]; in memory, or mapped from a file."""
    labels: NDArray[np.int64]
    """[N], indices of class names."""
    names: tuple[str, ...] | None = None
    """[N], the path of each image's file in its folder; None for a data set that has no files."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return a copy of the images and labels at indices `rows`, int64 [M]."""
        names = None if self.names is None else tuple(self.names[row] for row in rows)
        return Split(self.images[rows], self.labels[rows], names)

    def digest_of_images(self) -> str:
        """Return a SHA-256 of the images, whatever their order and their labels."""
        each = sorted(hashlib.sha256(image.tobytes()).digest() for image in self.images)
        return hashlib.sha256(b"".join(each)).hexdigest()


@dataclass(frozen=True)
class AddedCounts:
    """Labelled images that were added to the training images."""

    images_per_class: dict[str, int]
    """How many were added of each class that has any."""
    left_out: dict[str, int]
    """How many files were not, by reason."""


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
    folder: FolderSplits | None = None
    """The files of an image folder; None for any other data set."""
    added: AddedCounts | None = None
    """What was added to `train`; None: nothing."""
    is_cross_fitted: bool = False
    """Whether `validation` is `train` itself: the validation outputs of an image are those of a
    network that was not trained on it."""

    def manifest_entry(self) -> dict[str, object]:
        """Return `data` of the manifest: name, split sizes and a SHA-256 of all content.

        Another one is of the test images alone: bundles that share it may be compared on them.
        For each class its number of training, validation and test images. Of a folder also how many
        files were left out, by reason, and how many are duplicates.
        """
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for split in self._splits():
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return {
            "name": self.name,
            "sha256": digest.hexdigest(),
            "test_sha256": self.test.digest_of_images(),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "images_per_class": {
                name: [int((split.labels == label).sum()) for split in self._splits()]
                for label, name in enumerate(self.class_names)
            },
            **({"cross_fitted": True} if self.is_cross_fitted else {}),
            **({} if self.folder is None else self.folder.manifest_entry()),
            **({} if self.added is None else {"added": asdict(self.added)}),
        }

    def _splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test


def load_dataset(config: TrainingConfig, spec: InputSpec | None = None) -> Dataset:
    """Load the data set that `config.data` names, from disk or by a verified download.

    Args:
        config: its data set, splits and folders.
        spec: what the images are turned into; None: what `config` says of that.

    Raises:
        DataError: the data set cannot be read or downloaded, is damaged, or has too few images.
    """
    if config.data.startswith(FOLDER_PREFIX):
        return _from_folder(config, Path(config.data.removeprefix(FOLDER_PREFIX)), spec)
    if config.data == "digits":
        data = _digits(config)
    elif config.data == "cifar-10":
        data = _cifar(config)
    else:
        data = _idx(config)
    return _resize_dataset(data, config, spec)


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
        Split(*published_archives.read_idx(config.data, split, config.data_dir, config.cache_dir))
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
        Split(*arrays)
        for arrays in published_archives.read_cifar(config.data_dir, config.cache_dir)
    )
    name = "cifar-10"
    if (len(train), len(test)) != published_archives.CIFAR_SIZES:
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


def _from_folder(config: TrainingConfig, path: Path, spec: InputSpec | None) -> Dataset:
    large = config.preset == "alexnet" or config.has_backbone
    size = config.image_size or (_LARGE_SIZE if large else _FOLDER_SIZE)
    spec = spec or InputSpec(
        channels=config.channels or 3,
        height=size,
        width=size,
        resize=config.resize or "crop",
    )
    folder = split_folder(path, _split_options(config, spec))
    size_bytes = sum(map(len, folder.splits.values())) * int(np.prod(_shape(spec)))
    on_disk = config.cache_dir if size_bytes > config.max_memory_gib * 2**30 else None
    decoded = {
        name: _decoded(files, path, spec, config.max_pixels, on_disk)
        for name, files in folder.splits.items()
    }
    if config.is_frozen:
        decoded["validation"] = decoded["train"]
    epochs, batch_size = (20, 32) if config.has_backbone else (40, 64)
    augmentation: Augmentation = "photographs" if config.has_backbone else "flip-crop"
    return Dataset(
        name=path.resolve().name,
        class_names=folder.class_names,
        input=spec,
        defaults=DatasetDefaults(epochs, batch_size, augmentation, shift=max(1, size // 8)),
        folder=folder,
        is_cross_fitted=config.is_frozen,
        train=decoded["train"],
        validation=decoded["validation"],
        test=decoded["test"],
    )


def _decoded(
    files: LabelledFiles, root: Path, spec: InputSpec, max_pixels: int, on_disk: Path | None
) -> Split:
    images = decode_files([file for file, _ in files], spec, max_pixels, on_disk)
    names = tuple(printable(str(file.relative_to(root))) for file, _ in files)
    return Split(images, np.array([label for _, label in files], np.int64), names)


def _split_options(config: TrainingConfig, spec: InputSpec) -> SplitOptions:
    return SplitOptions(
        validation_share=config.validation_share or _VALIDATION_SHARE,
        test_share=config.test_share,
        split_seed=config.split_seed,
        duplicates=config.duplicates,
        spec=spec,
        max_pixels=config.max_pixels,
        cross_fit=config.is_frozen,
    )


def _with_validation(data: Dataset, share: float, seed: int) -> Dataset:
    """Move a stratified draw of the training images into the validation split."""
    rest, drawn = stratified_split(data.train.labels, share, seed)
    return replace(data, train=data.train.take(rest), validation=data.train.take(drawn))


def _resize_dataset(data: Dataset, config: TrainingConfig, spec: InputSpec | None) -> Dataset:
    """Convert a data set of fixed size to `spec`, or to what `config` says."""
    size = config.image_size or (_LARGE_SIZE if config.preset == "alexnet" else None)
    wanted = spec or InputSpec(
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
    images = [fit_image(to_pillow(image), spec) for image in split.images]
    return Split(np.stack(images), split.labels)


def _shape(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width
