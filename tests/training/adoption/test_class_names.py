"""Names of classes are read from a file and found among those of a folder."""

from pathlib import Path

import pytest

from model.errors import DataError
from training.adoption.class_names import match_classes, read_class_names

IMAGENET = ("goose", "bee", "ant, emmet, pismire", "crane (3)", "crane (4)", "glass", "Old_English")


@pytest.mark.parametrize(
    ("folder", "outputs"),
    [
        (["ants", "bees"], [2, 1]),
        (["Pismire", "BEE"], [2, 1]),
        (["glass", "old-english"], [5, 6]),
        (["crane (4)"], [4]),
    ],
)
def test_folder_is_found_by_case_plural_and_further_names(
    folder: list[str], outputs: list[int]
) -> None:
    assert match_classes(folder, IMAGENET).tolist() == outputs


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        (["beez"], "'beez' is none of the network's 7 classes; the nearest are 'bee'"),
        (["ants", "emmet"], "Several folders mean the class 'ant, emmet, pismire'"),
    ],
)
def test_folder_that_is_no_class_is_refused(folder: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        match_classes(folder, IMAGENET)


def test_name_that_may_mean_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match="may be 'ant, worker', 'ant, queen'"):
        match_classes(["ant"], ["ant, worker", "ant, queen"])


def test_equal_names_of_a_file_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("crane\nbee\n crane \n", encoding="utf-8-sig")
    assert read_class_names(file) == ("crane (0)", "bee", "crane (2)")


def test_file_with_a_gap_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("crane\n\nbee\n")
    with pytest.raises(DataError, match="no name in line 2"):
        read_class_names(file)
