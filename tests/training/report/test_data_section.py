from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from model.images.preprocessing import InputSpec
from tests.training.data.folders import encoded, write, write_class
from training.data.folder_splits import FolderSplits, SplitOptions, split_folder
from training.evaluation.label_quality import NamedCandidate
from training.evaluation.metrics_schema import BundleMetrics
from training.report.data_section import data_section, files_section


@pytest.fixture
def folder(tmp_path: Path) -> FolderSplits:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    write(tmp_path / "dog" / "same.jpg", encoded(3, "JPEG"))
    for number in range(30):
        write(tmp_path / "dog" / f"<b>{number:02}|.txt", b"text")
    spec = InputSpec(channels=3, height=8, width=8, resize="crop")
    return split_folder(tmp_path, SplitOptions(0.2, 0.2, 0, "remove", spec, 10**6))


def test_card_counts_and_names_no_file(folder: FolderSplits) -> None:
    metrics = cast(BundleMetrics, {"label_candidates": 2})
    text = data_section(folder.manifest_entry(), metrics)
    assert "- files that are no image: 30" in text
    assert "more than once: 1, of which 1 are in two classes" in text
    assert "Held-out images that are possibly in the wrong class: 2." in text
    assert ".txt" not in text
    assert data_section({"name": "digits"}, cast(BundleMetrics, {})) == ""


def test_page_names_a_bounded_number_of_files(folder: FolderSplits) -> None:
    candidate = NamedCandidate("cat/1.png", "cat", "dog", 0.1, 0.9)
    text = files_section(folder, [candidate])
    assert "| files that are no image | 30 | dog/\\<b\\>00\\|.txt, dog/" in text
    assert text.count(".txt") == 20
    assert "- cat/3.png = dog/same.jpg" in text
    assert "| cat/1.png | cat | dog | 0.100 | 0.900 |" in text
    assert files_section(None, []) == ""


def test_numbers_of_the_manifest_are_plain(folder: FolderSplits) -> None:
    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for each in value.values() for leaf in leaves(each)]
        return [value]

    assert not any(isinstance(leaf, np.generic) for leaf in leaves(folder.manifest_entry()))
