"""Prepares the files of an image folder for training: inspected, without duplicates, split.

Draws the splits that the folder lacks. Decodes thumbnails only, and knows no network.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError
from model.images.preprocessing import InputSpec
from training.data.duplicates import TooAlikeError, duplicate_groups
from training.data.excluded_files import MAX_NAMES, LeftOut, counted, printable
from training.data.image_folder_layout import ImageFolder, LabelledFiles, list_images
from training.data.image_inspection import Inspected, inspect_files
from training.data.stratified_split import stratified_split

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_MIN_IMAGES = 3  # of a class, so that each split can have one
_SCENE_IMAGES = 10
"""A class of fewer images is too small to tell copies of one picture from pictures of one scene."""


@dataclass(frozen=True)
class SplitOptions:
    """How the files of a folder are judged and split."""

    validation_share: float
    test_share: float
    split_seed: int
    duplicates: Literal["remove", "keep"]
    """Whether duplicates of validation and test images are left out of the training images."""
    spec: InputSpec
    """What the images will be decoded to."""
    max_pixels: int
    """Limit on the height x width of an image."""
    cross_fit: bool = False
    """Whether validation is done by cross-fitting, so that no image is set apart for it."""


@dataclass
class DuplicateCounts:
    """The pictures that a folder has more than once."""

    pictures: int = 0
    """Pictures with two or more images in the folder."""
    across_splits: int = 0
    """Training or validation images that show a picture of a split that is measured later."""
    two_classes: list[str] = field(default_factory=list)
    """At most MAX_NAMES pictures that are in two or more classes: the names of their files."""
    two_classes_pictures: int = 0
    """Number of these pictures."""
    near: bool = True
    """False where only equal files were compared, as too many pictures are much alike."""


@dataclass(frozen=True)
class FolderSplits:
    """The files of the three splits of a folder, with what was left out and found twice."""

    class_names: tuple[str, ...]
    splits: dict[str, LabelledFiles]
    """By name: `train`, `validation` and `test`."""
    groups: dict[str, NDArray[np.int64]]
    """By name, for each file the number of its picture; duplicates and near-duplicates share it."""
    left_out: LeftOut
    duplicates: DuplicateCounts

    def manifest_entry(self) -> dict[str, Any]:
        """Return what `data` in the manifest says of the folder: counts, without file names."""
        counts = self.duplicates
        return {
            "left_out": self.left_out.counts(),
            "duplicates": {
                "pictures": counts.pictures,
                "across_splits": counts.across_splits,
                "in_two_classes": counts.two_classes_pictures,
                "near": counts.near,
            },
        }


def split_folder(path: Path, options: SplitOptions) -> FolderSplits:
    """List, inspect and split the files of a folder.

    Raises:
        DataError: the layout is not clear, or a class has too few images that can be read.
    """
    folder = list_images(path)
    if options.cross_fit:
        folder = replace(folder, splits=_pool_validation(folder.splits))
    files = [(split, *file) for split, listed in folder.splits.items() for file in listed]
    paths = [path for _, path, _ in files]
    inspected = inspect_files(paths, options.spec, options.max_pixels, folder.left_out)
    rows = [row for row, image in enumerate(inspected) if image is not None]
    splitter = _Splitter(
        folder,
        options,
        np.array([files[row][0] for row in rows], f"<U{max(map(len, SPLITS))}"),
        [paths[row] for row in rows],
        np.array([files[row][2] for row in rows], np.int64),
    )
    try:
        return splitter.split([image for image in inspected if image is not None])
    finally:
        folder.left_out.log()


def _pool_validation(splits: dict[str, LabelledFiles]) -> dict[str, LabelledFiles]:
    """Return the splits without a validation split: it is the test, or else is trained on."""
    pooled = dict(splits)
    validation = pooled.pop("validation", [])
    if validation and "test" not in pooled:
        logger.info(
            "The validation folder is the test: no image is set apart for validation, as "
            "cross-fitting takes its place."
        )
        return pooled | {"test": validation}
    if validation:
        logger.info(
            "The validation folder is trained on, too: cross-fitting takes the place of validation."
        )
    return pooled | {"train": pooled["train"] + validation}


class _Splitter:
    """Assigns the images of a folder, N that can be read, to its splits."""

    def __init__(
        self,
        folder: ImageFolder,
        options: SplitOptions,
        splits: NDArray[np.str_],
        paths: Sequence[Path],
        labels: NDArray[np.int64],
    ) -> None:
        self._folder = folder
        self._options = options
        self._splits = splits
        self._paths = paths
        self._labels = labels
        self._counts = DuplicateCounts()

    def split(self, images: Sequence[Inspected]) -> FolderSplits:
        self._require_images(np.arange(len(images)), "that can be read")
        groups = self._groups(images)
        self._find_two_classes(groups)
        if self._options.duplicates == "remove":
            self._leave_out_repeated(groups)
            self._require_images(groups, "when duplicates are left out", ", add --duplicates keep")
            self._draw(groups)
        else:
            drawn_together = groups if self._has_pictures_enough(groups) else np.arange(len(groups))
            self._draw(drawn_together)
            self._counts.across_splits = len(self._repeated(groups))
            groups = drawn_together
        self._log_duplicates()
        return FolderSplits(
            self._folder.class_names,
            {split: self._files(split) for split in SPLITS},
            {split: groups[self._splits == split] for split in SPLITS},
            self._folder.left_out,
            self._counts,
        )

    def _files(self, split: str) -> LabelledFiles:
        rows = np.flatnonzero(self._splits == split)
        return [(self._paths[row], int(self._labels[row])) for row in rows.tolist()]

    def _pictures_by_class(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the training images of each class, int64 [K]; those of a group count once."""
        train = np.flatnonzero(self._splits == "train")
        leaders = train[np.unique(groups[train], return_index=True)[1]]
        return np.bincount(self._labels[leaders], minlength=len(self._folder.class_names))

    def _has_pictures_enough(self, groups: NDArray[np.int64]) -> bool:
        return bool(self._pictures_by_class(groups).min() >= _MIN_IMAGES)

    def _require_images(
        self, groups: NDArray[np.int64], described: str, other_remedy: str = ""
    ) -> None:
        """Refuse a class with too few training images, counting the images of a group once."""
        counts = self._pictures_by_class(groups).tolist()
        place = " in the training folder" if len(self._folder.splits) > 1 else ""
        for name, count in zip(self._folder.class_names, counts, strict=True):
            if count < _MIN_IMAGES:
                raise DataError(
                    f"Class {printable(name)!r} has {counted(count, 'image')}{place} {described}; "
                    f"give it at least {_MIN_IMAGES}{other_remedy}, or remove its folder."
                )
        for split in self._folder.splits:
            if not (self._splits == split).any():
                raise DataError(
                    f"{printable(str(self._folder.path))} has no {split} image {described}; fill "
                    "that folder or remove it."
                )

    def _groups(self, images: Sequence[Inspected]) -> NDArray[np.int64]:
        """Return the number of the picture of each image, int64 [N]."""
        equal = duplicate_groups(images, perceptual=False)
        try:
            groups = duplicate_groups(images)
            self._counts.near = not self._shows_one_scene(groups, equal)
        except TooAlikeError:
            self._counts.near = False
        if not self._counts.near:
            groups = equal
        self._counts.pictures = sum(size > 1 for size in Counter(groups.tolist()).values())
        return groups

    def _shows_one_scene(self, groups: NDArray[np.int64], equal: NDArray[np.int64]) -> bool:
        """Return whether most different files of a class show one picture, as a fixed camera's do.

        groups, equal: int64 [N], the groups of near-duplicates and of equal files.
        """
        different = np.unique(equal, return_index=True)[1]
        for label in range(len(self._folder.class_names)):
            of_class = groups[different[self._labels[different] == label]]
            largest = np.unique(of_class, return_counts=True)[1].max(initial=0)
            if len(of_class) >= _SCENE_IMAGES and largest > len(of_class) / 2:
                return True
        return False

    def _find_two_classes(self, groups: NDArray[np.int64]) -> None:
        pairs = np.unique(np.stack([groups, self._labels], axis=1), axis=0)
        numbers, classes = np.unique(pairs[:, 0], return_counts=True)
        mixed = numbers[classes > 1]
        self._counts.two_classes_pictures = len(mixed)
        for number in mixed[:MAX_NAMES]:
            rows = np.flatnonzero(groups == number)[:MAX_NAMES].tolist()
            names = [self._folder.left_out.name(self._paths[row]) for row in rows]
            self._counts.two_classes.append(" = ".join(names))

    def _repeated(self, groups: NDArray[np.int64]) -> list[int]:
        """Return the rows of training and validation images whose picture a later split has."""
        ranks = self._ranks()
        latest = np.zeros(groups.max() + 1, np.int64)
        np.maximum.at(latest, groups, ranks)
        repeated: list[int] = np.flatnonzero(ranks < latest[groups]).tolist()
        return repeated

    def _ranks(self) -> NDArray[np.int64]:
        return np.array([SPLITS.index(split) for split in self._splits])

    def _leave_out_repeated(self, groups: NDArray[np.int64]) -> None:
        """Leave out training and validation images whose picture a later split has, too."""
        in_order = np.argsort(self._ranks(), kind="stable").tolist()
        last_row = {int(groups[row]): row for row in in_order}
        for row in self._repeated(groups):
            self._counts.across_splits += 1
            self._splits[row] = ""
            original = self._folder.left_out.name(self._paths[last_row[int(groups[row])]])
            self._folder.left_out.add("duplicate", self._paths[row], f"= {original}")

    def _draw(self, groups: NDArray[np.int64]) -> None:
        """Draw the splits that the folder lacks from the training images."""
        options, has_test = self._options, "test" in self._folder.splits
        test_share = 0.0 if has_test else options.test_share
        shares = {"test": test_share, "validation": options.validation_share / (1 - test_share)}
        if options.cross_fit:
            del shares["validation"]
        for split, share in shares.items():
            if split not in self._folder.splits:
                rows = np.flatnonzero(self._splits == "train")
                _, drawn = stratified_split(
                    self._labels[rows], share, options.split_seed, groups[rows]
                )
                self._splits[rows[drawn]] = split

    def _log_duplicates(self) -> None:
        counts = self._counts
        if not counts.near:
            logger.warning(
                "Too many pictures are alike, as those of a camera that never moves; only equal "
                "files were taken as duplicates. If others are copies of each other, too, the "
                "measurements are too good."
            )
        if counts.across_splits and self._options.duplicates == "keep":
            logger.warning(
                "%s of the training and validation splits show a picture of a split that is "
                "measured later, so the measurements are too good; see --duplicates.",
                counted(counts.across_splits, "image"),
            )
        if counts.two_classes_pictures:
            logger.warning(
                "In two classes: %s (%s)",
                counted(counts.two_classes_pictures, "picture"),
                "; ".join(counts.two_classes),
            )
