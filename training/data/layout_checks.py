"""Tells class folders from what only looks like them: masks, labels, folds, two spellings.

Opens no file.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from model.errors import DataError
from training.data.directory_walk import Folder
from training.data.excluded_files import printable

logger = logging.getLogger(__name__)

_IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_ANNOTATION_FOLDERS = {
    *("masks", "mask", "labels", "label", "annotations", "annotation"),
    *("segmentations", "groundtruth", "ground_truth"),
}
_FOLD = re.compile(r"(k?fold|split|part|cv)[\s_-]*\d+", re.IGNORECASE)


def annotations_beside_images(folders: Sequence[Folder]) -> list[Folder]:
    """Return those of some sibling folders that hold masks or labels of the images in another."""
    names = {_folded(folder) for folder in folders}
    if not names & _IMAGE_FOLDERS:
        return []
    return [folder for folder in folders if _folded(folder) in _ANNOTATION_FOLDERS]


def require_classes(classes: Sequence[Folder], path: Path) -> None:
    """Refuse the folders of a segmentation or detection data set, and those of a cross-validation.

    Args:
        classes: what would be the class folders.
        path: of the folder that has them.

    Raises:
        DataError: they are no classes.
    """
    where = printable(str(path))
    annotations = annotations_beside_images(classes)
    if annotations and {_folded(folder) for folder in classes} <= (
        _IMAGE_FOLDERS | _ANNOTATION_FOLDERS
    ):
        raise DataError(
            f"{where} has {_quoted(classes)}, as data for segmentation or detection have; make "
            "one sub-folder of images a class."
        )
    is_fold = [_FOLD.fullmatch(folder.path.name) is not None for folder in classes]
    if is_fold and all(is_fold) and _crossed_names(classes):
        raise DataError(
            f"{where} has the folds of a cross-validation ({_quoted(classes)}); train on one of "
            "them, or join them into train/ and test/."
        )


def warn_of_doubtful_classes(classes: Mapping[str, Sequence[Folder]]) -> None:
    """Log what may be a mistake: crossed folders, and names that differ in case or spaces alone."""
    inner = _crossed_names([folder for folders in classes.values() for folder in folders])
    if inner:
        logger.warning(
            "Each of the classes %s has the sub-folders %s, whose images belong to it here; if "
            "these are the classes, keep one of the upper folders, or name them train/ and test/.",
            *(_named(classes), _named(inner)),
        )
    spellings = defaultdict(list)
    for name in classes:
        spellings["".join(name.casefold().split())].append(name)
    for names in spellings.values():
        if len(names) > 1:
            logger.warning(
                "The classes %s differ in case or spaces alone; if they are one class, join them.",
                _named(names),
            )


def _crossed_names(folders: Sequence[Folder]) -> list[str]:
    """Return the names of the sub-folders of images if all folders have the same, two or more."""
    inner = {tuple(_names_of_image_folders(folder)) for folder in folders}
    if len(folders) < 2 or len(inner) > 1:
        return []
    (names,) = inner
    return list(names) if len(names) > 1 else []


def _names_of_image_folders(folder: Folder) -> Iterator[str]:
    annotations = annotations_beside_images(folder.folders)
    return (each.path.name for each in folder.folders if each not in annotations)


def _folded(folder: Folder) -> str:
    return folder.path.name.casefold()


def _quoted(folders: Sequence[Folder]) -> str:
    return _shortened([f"{printable(folder.path.name)}/" for folder in folders])


def _named(names: Iterable[str]) -> str:
    return _shortened([repr(printable(name)) for name in names])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
