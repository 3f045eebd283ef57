"""Adding labelled images of a folder to the training images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError, SettingsError
from tests.training.data.folders import write
from training.config import DatasetConfig
from training.data.added_images import add_images
from training.data.dataset import Dataset, load_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DatasetConfig(data="digits"))


def save(image: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0]).save(file)


def config(folder: Path) -> DatasetConfig:
    return DatasetConfig(data="digits", add=f"folder:{folder}")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return a folder with ten new digits of two classes."""
    rng = np.random.default_rng(0)
    for number in range(10):
        image = rng.integers(0, 256, (1, 8, 8), dtype=np.uint8)
        save(image, tmp_path / "labelled" / str(3 + number % 2) / f"{number}.png")
    return tmp_path / "labelled"


def test_images_are_added_to_the_training_split_alone(digits: Dataset, labelled: Path) -> None:
    found = add_images(digits, config(labelled))
    assert len(found.train) == len(digits.train) + 10
    np.testing.assert_array_equal(found.train.images[: len(digits.train)], digits.train.images)
    assert sorted(found.train.labels[len(digits.train) :].tolist()) == [3] * 5 + [4] * 5
    assert found.validation is digits.validation
    assert found.test is digits.test
    assert found.manifest_entry()["added"] == {
        "images_per_class": {"3": 5, "4": 5},
        "left_out": {},
    }
    assert "added" not in digits.manifest_entry()


def test_copies_of_held_out_images_and_broken_files_are_left_out(
    digits: Dataset, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(digits.test.images[0], labelled / "3" / "of the test.png")
    brighter = np.minimum(digits.validation.images[5].astype(int) * 9 // 8, 255)
    save(brighter.astype(np.uint8), labelled / "4" / "of the validation.png")
    write(labelled / "4" / "broken.png", b"\x89PNG\r\n\x1a\n and no more")
    found = add_images(digits, config(labelled))
    assert found.added is not None
    assert found.added.images_per_class == {"3": 5, "4": 5}
    assert found.added.left_out == {"damaged": 1, "duplicate": 2}
    assert "of the test.png" in caplog.text


def test_training_images_are_not_added_again(
    digits: Dataset, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for row in range(3):
        label = digits.class_names[digits.train.labels[row]]
        save(digits.train.images[row], labelled / label / f"again{row}.png")
    found = add_images(digits, config(labelled))
    assert len(found.train) == len(digits.train) + 10
    assert found.added is not None
    assert found.added.left_out == {"trained_on": 3}
    assert "Left out, images that are training images already (3): " in caplog.text
    assert "of another class" not in caplog.text


def test_training_image_with_another_label_is_added_and_named(
    digits: Dataset, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = next(row for row, label in enumerate(digits.train.labels) if label not in (3, 4))
    save(digits.train.images[other], labelled / "3" / "other.png")
    found = add_images(digits, config(labelled))
    assert len(found.train) == len(digits.train) + 11
    assert "an equal training image of another class (1): 3/other.png; one of the" in caplog.text


def test_unknown_class_is_refused(digits: Dataset, labelled: Path) -> None:
    (labelled / "3").rename(labelled / "three")
    with pytest.raises(DataError, match="is a class that the training split lacks; add it there"):
        add_images(digits, config(labelled))


def test_folder_without_new_images_is_refused(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="has no class folders; make one sub-folder a class"):
        add_images(digits, config(tmp_path / "a"))
    save(digits.test.images[0], tmp_path / "b" / "3" / "copy.png")
    with pytest.raises(DataError, match="has no image that can be added"):
        add_images(digits, config(tmp_path / "b"))
    label = digits.class_names[digits.train.labels[0]]
    save(digits.train.images[0], tmp_path / "c" / label / "known.png")
    with pytest.raises(DataError, match="has no image that can be added"):
        add_images(digits, config(tmp_path / "c"))


def test_cross_fitted_images_are_not_added_to(digits: Dataset, labelled: Path) -> None:
    with pytest.raises(SettingsError, match="use --learn fine-tuned or --backbone none"):
        add_images(replace(digits, is_cross_fitted=True), config(labelled))


def test_images_on_disk_stay_there(digits: Dataset, labelled: Path, tmp_path: Path) -> None:
    file = np.memmap(tmp_path / "images", np.uint8, mode="w+", shape=digits.train.images.shape)
    file[:] = digits.train.images
    on_disk = replace(digits, train=replace(digits.train, images=file))
    options = config(labelled).model_copy(update={"cache_dir": tmp_path / "cache"})
    found = add_images(on_disk, options)
    assert isinstance(found.train.images, np.memmap)
    np.testing.assert_array_equal(found.train.images[: len(file)], file)
