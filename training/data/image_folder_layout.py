"""Finds the classes and the data splits of a folder of images, in the layouts that people use.

`PATH/CLASS/*`, or `PATH/train/CLASS/*` beside `val/` or `test/` under any of their usual names, or
`PATH/CLASS/train/*`; each may be wrapped into one more folder, and other folders inside a class
belong to it. Decodes no image and draws no split.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from training.data.directory_walk import Folder, is_trash, read_tree
from training.data.excluded_files import LeftOut, printable
from training.data.image_file_type import file_format
from training.data.layout_checks import (
    annotations_beside_images,
    require_classes,
    warn_of_doubtful_classes,
)

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_FILLERS = {"set", "split", "data", "dataset", "images", "imgs", "seg"}
"""Words beside the name of a split, as in `training_set` and `seg_train`."""
_TRIED_FILES = 20  # files of a folder that are opened to see whether it holds images

LabelledFiles = list[tuple[Path, int]]
"""Image files, each with the index of its class."""


@dataclass(frozen=True)
class ImageFolder:
    """The classes of a folder, the files of each of its splits, and what was left out."""

    path: Path
    class_names: tuple[str, ...]
    """Sorted, in Unicode's composed form (NFC); a label is an index of this tuple."""
    splits: dict[str, LabelledFiles]
    """By name: `train`, and `validation` and `test` where the folder has them."""
    left_out: LeftOut


def list_images(path: Path) -> ImageFolder:
    """List the classes and the files of a folder; no file is judged yet.

    Raises:
        DataError: the layout is not clear, a class is empty or its name is not UTF-8, there are
            fewer than two classes, or a split has a class that the training split lacks.
    """
    left_out = LeftOut(path)
    try:
        return _list_images(path, left_out)
    except DataError:
        left_out.log()
        raise


def list_labelled(path: Path, class_names: tuple[str, ...], left_out: LeftOut) -> LabelledFiles:
    """List the files of a folder that has images of some of the given classes, one sub-folder each.

    Args:
        path: the folder.
        class_names: in the order of the labels.
        left_out: records what is in no class folder.

    Raises:
        DataError: it has no class folder, or one of another class.
    """
    classes = _classes(read_tree(path, left_out), left_out)
    if not classes:
        raise DataError(
            f"{printable(str(path))} has no class folders; make one sub-folder a class."
        )
    _require_known(classes, class_names)
    return _labelled(classes, class_names, left_out)


def _list_images(path: Path, left_out: LeftOut) -> ImageFolder:
    root = _unwrap(read_tree(path, left_out), left_out)
    splits = _own_splits(root, left_out)
    classes = _classes(splits["train"], left_out)
    _require_two(classes, splits["train"])
    require_classes(splits["train"].folders, splits["train"].path)
    warn_of_doubtful_classes(classes)
    class_names = tuple(sorted(classes))
    listed = {"train": _labelled(classes, class_names, left_out)}
    for split in ("validation", "test"):
        if split in splits:
            folder = _unwrap(splits[split], left_out, inner=set(class_names))
            if _is_flat(folder):
                _leave_out(folder, left_out, f"{split} images without class folders")
                continue
            own = _classes(folder, left_out)
            _require_known(own, class_names)
            listed[split] = _labelled(own, class_names, left_out)
    return ImageFolder(path, class_names, listed, left_out)


def _unwrap(folder: Folder, left_out: LeftOut, inner: set[str] | None = None) -> Folder:
    """Go down into a single folder as long as it has sub-folders and no images of its own.

    inner: names of classes, where a folder of that name is a class and no wrapping.
    """
    while len(folder.folders) == 1:
        (only,) = folder.folders
        wraps_flat_split = inner is not None and _split_of(only) and _class_name(only) not in inner
        is_class = inner is not None and _class_name(only) in inner
        if is_class or not (wraps_flat_split or (only.folders and not _has_images(only))):
            break
        _leave_out_files(folder, left_out)
        folder = only
    return folder


def _own_splits(root: Folder, left_out: LeftOut) -> dict[str, Folder]:
    """Return the folder of each split; where there is no train/, `root` holds the classes."""
    named, others = _named_splits(root)
    train = named.get("train")
    if train is None:
        return _splits_beside_classes(root, named, others, left_out)
    train = _unwrap(train, left_out)
    if _is_flat(train):
        if not others:
            raise DataError(
                f"{printable(str(train.path))} has no class folders; make one sub-folder a class."
            )
        others.append(train)  # a class of trains
        return _splits_beside_classes(root, {**named, "train": train}, others, left_out)
    pictured = [each for each in others if any(map(_has_images, each.walk()))]
    if pictured and len(named) == 1:
        raise DataError(
            f"{printable(str(root.path))} has {train.path.name}/ with class folders beside "
            f"{_listed(pictured)}; move these elsewhere, or rename {train.path.name}/ if it is a "
            "class."
        )
    for each in others:
        _leave_out(each, left_out, "beside the data splits")
    _leave_out_files(root, left_out)
    return {**named, "train": train}


def _splits_beside_classes(
    root: Folder, named: dict[str, Folder], classes: list[Folder], left_out: LeftOut
) -> dict[str, Folder]:
    """Return the splits of a folder whose own sub-folders are the classes of the training split."""
    inside = {} if named else _splits_inside_classes(root, classes, left_out)
    if inside:
        return inside
    splits = {split: folder for split, folder in named.items() if folder not in classes}
    if splits and not classes:
        raise DataError(
            f"{printable(str(root.path))} has data splits but no train/; add it, with one "
            "sub-folder a class."
        )
    return {**splits, "train": Folder(root.path, root.files, classes)}


def _splits_inside_classes(
    root: Folder, classes: list[Folder], left_out: LeftOut
) -> dict[str, Folder]:
    """Return the splits of a folder whose classes are divided, CLASS/train/*; empty: they are not.

    Each split gets a folder for each class that has images in it.
    """
    splits: dict[str, Folder] = {}
    for each in classes:
        named, others = _named_splits(each)
        if "train" not in named or others or _has_images(each):
            return {}
        for split, part in named.items():
            folder = splits.setdefault(split, Folder(root.path))
            folder.folders.append(Folder(each.path, part.files, part.folders))
    if len(splits) < 2:
        return {}
    for each in (root, *classes):
        _leave_out_files(each, left_out)
    return splits


def _named_splits(root: Folder) -> tuple[dict[str, Folder], list[Folder]]:
    named: dict[str, Folder] = {}
    others = []
    exact = {_split_of(folder) for folder in root.folders}
    numbered = {_split_of(folder, numbered=True) for folder in root.folders} - {None}
    has_splits = "train" in numbered and len(numbered) > 1
    for folder in root.folders:
        split = _split_of(folder)
        if split is None and has_splits:
            split = _split_of(folder, numbered=True)
            split = None if split in exact else split
        if split is None:
            others.append(folder)
        elif split in named:
            raise DataError(
                f"{printable(str(root.path))} has two folders for one data split, "
                f"{_listed([named[split], folder])}; keep one of them."
            )
        else:
            named[split] = folder
    return named, others


def _split_of(folder: Folder, *, numbered: bool = False) -> str | None:
    """Return the split that the name of a folder says, None for any other name.

    numbered: also where digits follow, as in train2017 and test1.
    """
    name = folder.path.name.casefold()
    words = re.split(r"[\W_]+", name.rstrip("0123456789") if numbered else name)
    telling = [word for word in words if word and word not in _FILLERS]
    return _SPLIT_NAMES.get(telling[0]) if len(telling) == 1 else None


def _classes(folder: Folder, left_out: LeftOut) -> dict[str, list[Folder]]:
    """Return the folders of each class; two spellings of one name are one class."""
    _leave_out_files(folder, left_out)
    classes: dict[str, list[Folder]] = {}
    for each in folder.folders:
        classes.setdefault(_class_name(each), []).append(each)
    return classes


def _class_name(folder: Folder) -> str:
    name = unicodedata.normalize("NFC", folder.path.name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"The name of the class folder {printable(str(folder.path))} is not UTF-8; rename it."
        ) from None
    return name


def _require_two(classes: dict[str, list[Folder]], train: Folder) -> None:
    path = printable(str(train.path))
    if not classes:
        raise DataError(
            f"{path} has no images in class folders; make one sub-folder of images a class."
        )
    if len(classes) == 1:
        raise DataError(
            f"{path} has images of one class only ({printable(*classes)}); make a sub-folder for "
            "each of two or more classes."
        )


def _require_known(classes: dict[str, list[Folder]], class_names: tuple[str, ...]) -> None:
    by_folded = {name.casefold(): name for name in class_names}
    for name, folders in classes.items():
        if name not in class_names:
            similar = by_folded.get(name.casefold())
            remedy = f"rename it to {similar!r}" if similar else "add it there, or remove it"
            raise DataError(
                f"{printable(str(folders[0].path))} is a class that the training split lacks; "
                f"{remedy}."
            )


def _labelled(
    classes: dict[str, list[Folder]], class_names: tuple[str, ...], left_out: LeftOut
) -> LabelledFiles:
    files: LabelledFiles = []
    for label, name in enumerate(class_names):
        for folder in classes.get(name, []):
            files += [(path, label) for path in _class_files(folder, left_out)]
    return files


def _class_files(folder: Folder, left_out: LeftOut) -> list[Path]:
    files = list(folder.files)
    annotations = annotations_beside_images(folder.folders)
    for each in folder.folders:
        if each in annotations:
            _leave_out(each, left_out, "masks or labels")
        elif is_trash(each.path.name):
            left_out.add("system_folder", each.path, files=each.file_count())
        else:
            files += _class_files(each, left_out)
    return files


def _leave_out_files(folder: Folder, left_out: LeftOut) -> None:
    for path in folder.files:
        left_out.add("outside", path)


def _leave_out(folder: Folder, left_out: LeftOut, detail: str) -> None:
    left_out.add("outside", folder.path, detail, files=folder.file_count())


def _is_flat(folder: Folder) -> bool:
    """Return whether a folder has images of its own, or files and no sub-folders."""
    return _has_images(folder) or bool(folder.files and not folder.folders)


def _has_images(folder: Folder) -> bool:
    return any(file_format(path) is not None for path in folder.files[:_TRIED_FILES])


def _listed(folders: list[Folder]) -> str:
    names = [printable(folder.path.name) + "/" for folder in folders]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
