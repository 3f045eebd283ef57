"""digits, mnist, fashion-mnist, kmnist, cifar-10, folder:PATH -> three disjoint parts in memory.

Knows no network. Every part is uint8 [N, C, H, W] and int64 [N], decoded once, so the training loop
never waits for a loader.
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
from training.data import archives
from training.data import image_folder as folder

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

_VALIDATION = 0.1
_IDX_VALIDATION = 1 / 12  # 5,000 of the 60,000 training images
_FOLDER_SIZE = 64
_FEWEST = 3  # images of a class, so that each part can have one
_ALEXNET_SIZE = 224


@dataclass(frozen=True)
class Split:
    """images uint8 [N, C, H, W]; labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return the named rows, copied."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class DatasetDefaults:
    """What suits a data set where the user names nothing: epochs, batch size, augmentation."""

    epochs: int
    batch_size: int
    augmentation: Augmentation
    shift: int
    """Largest shift of an augmented image, in pixels."""
    threads: int | None = None
    """Processor threads: one where the work of a step is too small to share; None for all."""


@dataclass(frozen=True)
class DataSet:
    """Three disjoint parts, and what is known of them."""

    name: str
    class_names: tuple[str, ...]
    input: InputSpec
    train: Split
    validation: Split
    test: Split
    recipe: DatasetDefaults

    def describes(self) -> dict[str, object]:
        """Return the manifest's `data`: name, sizes, and a SHA-256 over all pixels and labels."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for part in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(part.images).data)
            digest.update(np.ascontiguousarray(part.labels).data)
        return {
            "name": self.name,
            "sha256": digest.hexdigest(),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def load(config: TrainingConfig) -> DataSet:
    """Load the data set that `config.data` names, from disk or by a verified download.

    Raises:
        DataError: it cannot be had, is damaged, or cannot be split into three parts.
    """
    if config.data.startswith(FOLDER_PREFIX):
        return _from_folder(config, Path(config.data.removeprefix(FOLDER_PREFIX)))
    if config.data == "digits":
        data = _digits(config)
    elif config.data == "cifar-10":
        data = _cifar(config)
    else:
        data = _idx(config)
    return _refit(data, config)


def split(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw `share` of each class, at least one image of each: sorted rows (rest, drawn).

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
    picked = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), picked), picked


def _digits(config: TrainingConfig) -> DataSet:
    from sklearn.datasets import load_digits  # slow to import, needed here alone

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    whole = Split(pixels, scans.target.astype(np.int64))
    rest, test = split(whole.labels, config.test_share, config.split_seed)
    return _with_validation(
        DataSet(
            name="digits (scikit-learn's handwritten digits)",
            class_names=_DIGITS,
            input=InputSpec(channels=1, height=8, width=8, resize="pad"),
            train=whole.take(rest),
            validation=whole.take(rest[:0]),
            test=whole.take(test),
            recipe=DatasetDefaults(60, 64, "affine", shift=1, threads=1),
        ),
        (config.validation_share or _VALIDATION) / (1 - config.test_share),
        config.split_seed,
    )


def _idx(config: TrainingConfig) -> DataSet:
    recipes = {
        "mnist": (_DIGITS, DatasetDefaults(12, 128, "shift", 2)),
        "kmnist": (_KMNIST, DatasetDefaults(12, 128, "shift", 2)),
        "fashion-mnist": (_FASHION, DatasetDefaults(34, 128, "flip-crop", 2)),
    }
    class_names, recipe = recipes[config.data]
    train, test = (
        Split(*archives.read_idx(config.data, part, config.data_dir, config.cache_dir))
        for part in ("train", "t10k")
    )
    data = DataSet(
        name=config.data,
        class_names=class_names,
        input=InputSpec(channels=1, height=28, width=28, resize="pad"),
        train=train,
        validation=train.take(np.arange(0)),
        test=test,
        recipe=recipe,
    )
    share = config.validation_share or _IDX_VALIDATION
    return _with_validation(data, share, config.split_seed)


def _cifar(config: TrainingConfig) -> DataSet:
    train, test = (Split(*part) for part in archives.read_cifar(config.data_dir, config.cache_dir))
    name = "cifar-10"
    if (len(train), len(test)) != archives.CIFAR_SIZES:
        name = f"part of cifar-10 ({len(train):,} training and {len(test):,} test images)"
        logger.warning("The data folder holds only a %s; its accuracy is not CIFAR-10's.", name)
    data = DataSet(
        name=name,
        class_names=_CIFAR,
        input=InputSpec(channels=3, height=32, width=32, resize="crop"),
        train=train,
        validation=train.take(np.arange(0)),
        test=test,
        recipe=DatasetDefaults(epochs=40, batch_size=128, augmentation="flip-crop", shift=4),
    )
    return _with_validation(data, config.validation_share or _VALIDATION, config.split_seed)


def _from_folder(config: TrainingConfig, path: Path) -> DataSet:
    size = config.image_size or (_ALEXNET_SIZE if config.preset == "alexnet" else _FOLDER_SIZE)
    spec = InputSpec(
        channels=config.channels or 3,
        height=size,
        width=size,
        resize=config.resize or "crop",
    )
    tree = folder.find(path)
    parts = _split_files(tree, config)
    size_bytes = sum(map(len, parts.values())) * int(np.prod(_shape(spec)))
    on_disk = config.cache_dir if size_bytes > config.max_memory_gib * 2**30 else None
    decoded = {name: Split(*folder.decode(files, spec, on_disk)) for name, files in parts.items()}
    _require_classes(decoded["train"], tree.class_names, path)
    return DataSet(
        name=path.resolve().name,
        class_names=tree.class_names,
        input=spec,
        recipe=DatasetDefaults(40, 64, "flip-crop", shift=max(1, size // 8)),
        **decoded,
    )


def _split_files(tree: folder.Tree, config: TrainingConfig) -> dict[str, folder.Labelled]:
    """Draw the parts that the folder does not have from its training part, before decoding."""
    parts = dict(tree.parts)
    for label, name in enumerate(tree.class_names):
        count = sum(each == label for _, each in parts["train"])
        if count < _FEWEST:
            raise DataError(
                f"Class {name!r} has {count} image(s) to train on; give it at least {_FEWEST}."
            )
    test_share = 0.0 if "test" in parts else config.test_share
    validation_share = config.validation_share or _VALIDATION
    shares = {"test": test_share, "validation": validation_share / (1 - test_share)}
    for part, share in shares.items():
        if part not in parts:
            files = parts["train"]
            labels = np.array([label for _, label in files], np.int64)
            rest, drawn = split(labels, share, config.split_seed)
            parts["train"] = [files[row] for row in rest]
            parts[part] = [files[row] for row in drawn]
    return parts


def _with_validation(data: DataSet, share: float, seed: int) -> DataSet:
    """Move a stratified draw of the training images into the validation part."""
    rest, drawn = split(data.train.labels, share, seed)
    return replace(data, train=data.train.take(rest), validation=data.train.take(drawn))


def _require_classes(train: Split, class_names: Sequence[str], path: Path) -> None:
    for name, count in zip(
        class_names, np.bincount(train.labels, minlength=len(class_names)), strict=True
    ):
        if count == 0:
            raise DataError(f"None of the training images of class {name!r} in {path} is readable.")


def _refit(data: DataSet, config: TrainingConfig) -> DataSet:
    """Bring a data set of fixed size to the size, channels and rule that were asked for."""
    size = config.image_size or (_ALEXNET_SIZE if config.preset == "alexnet" else None)
    wanted = InputSpec(
        channels=config.channels or data.input.channels,
        height=size or data.input.height,
        width=size or data.input.width,
        resize=config.resize or data.input.resize,
    )
    if _shape(wanted) == _shape(data.input):
        return replace(data, input=wanted)
    shift = max(1, round(data.recipe.shift * wanted.width / data.input.width))
    return replace(
        data,
        input=wanted,
        train=_refit_part(data.train, wanted),
        validation=_refit_part(data.validation, wanted),
        test=_refit_part(data.test, wanted),
        recipe=replace(data.recipe, shift=shift),
    )


def _refit_part(part: Split, spec: InputSpec) -> Split:
    images = [fit_image(_to_pillow(image), spec) for image in part.images]
    return Split(np.stack(images), part.labels)


def _to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    grey = len(image) == 1
    return Image.fromarray(image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _shape(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width
