import os
import unicodedata
from pathlib import Path

import pytest

from model.errors import DataError
from tests.training.data.folders import encoded, write, write_class
from training.data.image_folder_layout import ImageFolder, list_images


def counts(folder: ImageFolder) -> dict[str, int]:
    return {split: len(files) for split, files in folder.splits.items()}


def write_split(folder: Path, first: int, count: int = 3) -> None:
    write_class(folder / "cat", first, count)
    write_class(folder / "dog", first + 50, count)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "", "Testing"),
        ("TRAIN", "Val", ""),
        ("train", "dev", ""),
        ("training_set", "validation", "test_set"),
        ("seg_train", "", "seg_test"),
        ("train", "", ""),
        ("train2017", "val2017", ""),
        ("train", "", "test1"),
    ],
)
def test_every_usual_name_of_a_split_is_known(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    expected = {}
    for first, (split, name) in enumerate(
        (("train", train), ("validation", validation), ("test", test))
    ):
        if name:
            write_split(tmp_path / name, 100 * first)
            expected[split] = 6
    write(tmp_path / "README.dataset.txt", b"made by somebody")
    folder = list_images(tmp_path)
    assert folder.class_names == ("cat", "dog")
    assert counts(folder) == expected
    assert folder.left_out.names() == {"outside": ["README.dataset.txt"]}


def test_one_folder_around_the_real_one_is_gone_into_at_every_level(tmp_path: Path) -> None:
    write_split(tmp_path / "flowers" / "train" / "train", 0)
    write_split(tmp_path / "flowers" / "test" / "test", 100)
    write(tmp_path / "__MACOSX" / "._flowers", b"\0\5\x16\7")
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 6, "test": 6}
    assert folder.class_names == ("cat", "dog")


def test_test_images_without_classes_are_left_out_and_named(tmp_path: Path) -> None:
    write_split(tmp_path / "train", 0)
    write_class(tmp_path / "test", 100, 4)
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 6}
    assert folder.left_out.counts() == {"outside": 4}
    assert folder.left_out.names() == {"outside": ["test (test images without class folders)"]}


def test_flat_test_folder_beside_class_folders_is_no_class(tmp_path: Path) -> None:
    write_split(tmp_path, 0)
    write_class(tmp_path / "test", 100, 4)
    folder = list_images(tmp_path)
    assert folder.class_names == ("cat", "dog")
    assert folder.left_out.counts() == {"outside": 4}


def test_train_and_trash_may_be_classes(tmp_path: Path) -> None:
    for first, name in enumerate(("bus", "train", "trash")):
        write_class(tmp_path / name, 10 * first)
    folder = list_images(tmp_path)
    assert folder.class_names == ("bus", "train", "trash")
    assert counts(folder) == {"train": 15}


def test_folders_inside_a_class_belong_to_it_except_system_and_trash_folders(
    tmp_path: Path,
) -> None:
    write_split(tmp_path, 0)
    write_class(tmp_path / "cat" / "2020" / "garden", 200, 2)
    skipped = (".ipynb_checkpoints", "@eaDir", "Thumbnails", "trash", "lost+found", ".thumbs")
    for number, name in enumerate(skipped):
        write_class(tmp_path / "cat" / "2020" / name, 300 + 10 * number, 2)
    write(tmp_path / "dog" / "Thumbs.db", b"x")
    write(tmp_path / "dog" / ".DS_Store", b"x")
    write(tmp_path / "dog" / "._50.png", b"x")
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 8}
    assert folder.left_out.counts() == {"hidden": 3, "system_folder": 12}
    assert sorted(folder.left_out.names()["system_folder"]) == sorted(
        f"cat/2020/{name}" for name in skipped
    )


def test_linked_folder_is_read_once_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_class(root / "cat", 0)
    write_class(tmp_path / "elsewhere", 10)
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "cat" / "dogs").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(tmp_path)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "linked pipe.png").symlink_to(root / "cat" / "pipe.png")
    folder = list_images(root)
    assert folder.class_names == ("cat", "dog")
    assert counts(folder) == {"train": 10}
    names = folder.left_out.names()
    assert "cat/again (leads to a folder that is read elsewhere)" in names["link"]
    assert "cat/dogs (leads to a folder that is read elsewhere)" in names["link"]
    assert "cat/up (leads back up)" in names["link"]
    assert "cat/gone.png (leads nowhere)" in names["link"]
    assert names["special"] == ["cat/linked pipe.png", "cat/pipe.png"]
    assert sum("self.png" in name for each in names.values() for name in each) == 1


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, 0)
    write_class(tmp_path / "cat" / "locked", 100)
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 6}
    assert folder.left_out.names() == {"unreadable": ["cat/locked (Permission denied)"]}


def test_two_spellings_of_one_name_are_one_class(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "café 🐈")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    write_class(tmp_path / "train" / composed, 0)
    write_class(tmp_path / "train" / decomposed, 10)
    write_class(tmp_path / "train" / "dog", 20)
    write_class(tmp_path / "val" / decomposed, 30)
    write_class(tmp_path / "val" / "dog", 40)
    folder = list_images(tmp_path)
    assert folder.class_names == (composed, "dog")
    assert counts(folder) == {"train": 15, "validation": 10}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["val/cat/1", "test/cat/2"], "has data splits but no train/; add it"),
        (["train/1", "train/2"], "train has no class folders; make one sub-folder a class."),
        (["train/cat/1", "val/cat/2"], "has images of one class only (cat)"),
        (
            ["train/cat/1", "train/dog/2", "val/cat/3", "valid/cat/4"],
            "has two folders for one data split, val/, valid/; keep one of them.",
        ),
        (
            ["train/cat/1", "train/dog/2", "val/owl/3"],
            "val/owl is a class that the training split lacks; add it there, or remove it.",
        ),
        (
            ["train/cat/1", "train/dog/2", "val/Cat/3"],
            "val/Cat is a class that the training split lacks; rename it to 'cat'.",
        ),
        (
            ["train/steam/1", "train/metro/2", "bus/3", "car/4"],
            "train/ with class folders beside bus/, car/; move these elsewhere, or rename train/",
        ),
        (["1", "2"], "has no images in class folders; make one sub-folder of images a class."),
        (["train/1", "test1/2"], "train has no class folders; make one sub-folder a class."),
        (["train2017/1", "val2017/2"], "train2017 has no class folders; make one sub-folder a"),
        (["images/1", "masks/2"], "has images/, masks/, as data for segmentation or detection"),
        (["train/images/1", "train/labels/2"], "train has images/, labels/, as data for segm"),
        (
            ["fold_0/cat/1", "fold_0/dog/2", "fold_1/cat/3", "fold_1/dog/4"],
            "has the folds of a cross-validation (fold_0/, fold_1/); train on one of them, or",
        ),
    ],
)
def test_unclear_layout_is_refused_in_one_sentence(
    tmp_path: Path, files: list[str], sentence: str
) -> None:
    for file in files:
        write(tmp_path / file, encoded(0))
    with pytest.raises(DataError) as caught:
        list_images(tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_splits_inside_each_class_are_known(tmp_path: Path) -> None:
    for first, name in enumerate(("cat", "dog")):
        for second, split in enumerate(("train", "val", "test")):
            write_class(tmp_path / name / split, 100 * first + 10 * second, 3 + second)
    write(tmp_path / "dog" / "notes.txt", b"made by somebody")
    folder = list_images(tmp_path)
    assert folder.class_names == ("cat", "dog")
    assert counts(folder) == {"train": 6, "validation": 8, "test": 10}
    assert folder.left_out.names() == {"outside": ["dog/notes.txt"]}


def test_numbered_split_beside_one_of_its_plain_name_is_left_out(tmp_path: Path) -> None:
    for first, split in enumerate(("train", "test", "test2")):
        write_split(tmp_path / split, 100 * first)
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 6, "test": 6}
    assert folder.left_out.names() == {"outside": ["test2 (beside the data splits)"]}


def test_masks_beside_the_images_of_a_class_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for first, name in enumerate(("cat", "dog")):
        write_class(tmp_path / name / "images", 100 * first, 4)
        write_class(tmp_path / name / "masks", 100 * first + 50, 4)
    folder = list_images(tmp_path)
    assert counts(folder) == {"train": 8}
    assert folder.left_out.counts() == {"outside": 8}
    assert not caplog.text


@pytest.mark.parametrize(
    ("folders", "warning"),
    [
        (
            ["color/cat", "color/dog", "grey/cat", "grey/dog"],
            "Each of the classes 'color', 'grey' has the sub-folders 'cat', 'dog'",
        ),
        (["Cat", "cat", "dog"], "The classes 'Cat', 'cat' differ in case or spaces alone"),
        (["cat ", "cat", "dog"], "The classes 'cat', 'cat ' differ in case or spaces alone"),
        (["cat/2024", "cat/2025", "dog"], ""),
        (["cat/good", "dog/good"], ""),
    ],
)
def test_classes_that_may_be_a_mistake_are_warned_of(
    tmp_path: Path, folders: list[str], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number, folder in enumerate(folders):
        write_class(tmp_path / folder, 10 * number)
    list_images(tmp_path)
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_class_folder_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, 0)
    write_class(tmp_path / os.fsdecode(b"caf\xe9"), 100)
    with pytest.raises(DataError, match=r"caf\\xe9 is not UTF-8; rename it\.$"):
        list_images(tmp_path)
