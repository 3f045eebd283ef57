import gzip
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model.cli_and_env_settings import load as load_settings
from model.errors import DataError
from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.data import published_archives
from training.data.dataset import load_dataset
from training.data.image_decoding import decode_files
from training.data.stratified_split import stratified_split


def config(*arguments: str) -> TrainingConfig:
    return load_settings(TrainingConfig, list(arguments))


def write_image(folder: Path, name: str, level: int, size: tuple[int, int] = (20, 14)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def write_image_folder(root: Path, count: int = 10, first: int = 0) -> Path:
    """Write `count` pictures for each of two classes; no two have the same number."""
    for label, name in enumerate(("cat", "dog")):
        for index in range(count):
            suffix = ("png", "jpg", "webp", "gif", "bmp")[index % 5]
            write_image(root / name, f"{index}.{suffix}", first + 100 * label + index)
    return root


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.05, 0.49),
    st.integers(0, 2**32 - 1),
)
def test_stratified_split_is_disjoint_complete_stratified_and_seeded(
    labels: list[int], share: float, seed: int
) -> None:
    array = np.array(labels * 2, np.int64)  # so that each class has at least two images
    rest, drawn = stratified_split(array, share, seed)
    assert sorted([*rest, *drawn]) == list(range(len(array)))
    for label in set(labels):
        count = int((array == label).sum())
        taken = int((array[drawn] == label).sum())
        assert 1 <= taken < count
        assert abs(taken - share * count) <= 1
    np.testing.assert_array_equal(drawn, stratified_split(array, share, seed)[1])


def test_digits_load_as_three_splits_drawn_by_the_split_seed() -> None:
    data = load_dataset(config("--data", "digits"))
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sum(sizes) == 1797
    assert abs(sizes[2] - 1797 / 5) <= 5
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.max() == 255
    again = load_dataset(config("--data", "digits", "--seed", "7"))
    assert again.manifest_entry() == data.manifest_entry()
    other = load_dataset(config("--data", "digits", "--split-seed", "7"))
    assert other.manifest_entry() != data.manifest_entry()


def test_image_folder_is_split_and_decoded(tmp_path: Path) -> None:
    data = load_dataset(
        config("--data", f"folder:{write_image_folder(tmp_path)}", "--image-size", "16")
    )
    assert data.class_names == ("cat", "dog")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 2, 4]
    assert data.train.images.shape == (14, 3, 16, 16)
    assert data.input.resize == "crop"
    grey = load_dataset(config("--data", f"folder:{tmp_path}", "--colour", "grey"))
    assert grey.train.images.shape == (14, 1, 64, 64)


def test_image_folder_keeps_its_own_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        write_image_folder(tmp_path / split, 5, first=1000 * number)
    data = load_dataset(config("--data", f"folder:{tmp_path}"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [10, 10, 10]


def test_image_folder_recognises_split_names_in_any_case(tmp_path: Path) -> None:
    for number, split in enumerate(("Train", "TEST")):
        write_image_folder(tmp_path / split, first=1000 * number)
    data = load_dataset(config("--data", f"folder:{tmp_path}"))
    assert data.class_names == ("cat", "dog")
    assert len(data.test) == 20
    (tmp_path / "Train").rename(tmp_path / "val")
    with pytest.raises(DataError, match="has data splits but no train/"):
        load_dataset(config("--data", f"folder:{tmp_path}"))


def test_image_folder_draws_a_missing_validation_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        write_image_folder(tmp_path / split, 10, first=1000 * number)
    data = load_dataset(config("--data", f"folder:{tmp_path}"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 2, 20]


def test_image_folder_decodes_to_disk_beyond_the_memory_limit(tmp_path: Path) -> None:
    folder = f"folder:{write_image_folder(tmp_path / 'images')}"
    arguments = ["--data", folder, "--image-size", "16", "--cache-dir", str(tmp_path / "cache")]
    data = load_dataset(config(*arguments, "--max-memory-gib", "1e-6"))
    assert isinstance(data.train.images, np.memmap)
    assert data.manifest_entry() == load_dataset(config(*arguments)).manifest_entry()
    assert not list((tmp_path / "cache").iterdir())


def test_image_folder_logs_and_skips_broken_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image_folder(tmp_path)
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    (tmp_path / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "1.jpg").write_text("no image at all")
    with caplog.at_level(logging.WARNING):
        data = load_dataset(config("--data", f"folder:{tmp_path}"))
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 18
    assert (
        "Left out, damaged images (1): cat/0.png (The image is truncated or corrupt" in caplog.text
    )
    assert "Left out, files that are no image (1): dog/1.jpg" in caplog.text
    assert data.manifest_entry()["left_out"] == {"not_image": 1, "damaged": 1}


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ([], "has no images in class folders; make one sub-folder of images a class"),
        (["cat"], "has images of one class only (cat)"),
    ],
)
def test_image_folder_refuses_fewer_than_two_classes(
    tmp_path: Path, classes: list[str], sentence: str
) -> None:
    for name in classes:
        write_image(tmp_path / name, "0.png", 0)
    with pytest.raises(DataError) as caught:
        load_dataset(config("--data", f"folder:{tmp_path}"))
    assert sentence in str(caught.value)


def test_image_folder_refuses_a_class_with_too_few_images(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    write_image(tmp_path / "owl", "0.png", 0)
    with pytest.raises(DataError, match="'owl' has 1 image"):
        load_dataset(config("--data", f"folder:{tmp_path}"))


def test_image_folder_refuses_a_test_class_missing_in_training(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path / "test")
    write_image(tmp_path / "test" / "owl", "0.png", 0)
    with pytest.raises(DataError, match="owl is a class that the training split lacks"):
        load_dataset(config("--data", f"folder:{tmp_path}"))


def test_image_folder_refuses_a_class_of_broken_images(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    for file in (tmp_path / "cat").iterdir():
        file.write_text("broken")
    with pytest.raises(DataError, match="'cat' has 0 image"):
        load_dataset(config("--data", f"folder:{tmp_path}"))


def write_idx(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> list[str]:
    folder.mkdir(parents=True)
    digests = []
    for split in ("train", "t10k"):
        header = np.array([0x803, *images.shape], ">i4").tobytes()
        names = (f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz")
        label_header = np.array([0x801, len(labels)], ">i4").tobytes()
        contents = (header + images.tobytes(), label_header + labels.tobytes())
        for name, content in zip(names, contents, strict=True):
            data = gzip.compress(content)
            (folder / name).write_bytes(data)
            digests.append(hashlib.md5(data).hexdigest())
    return digests


def test_idx_files_in_the_data_folder_are_verified_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    labels = np.tile(np.arange(2, dtype=np.uint8), 12)
    digests = write_idx(tmp_path / "kmnist", images, labels)
    arguments = ("--data", "kmnist", "--data-dir", str(tmp_path))
    with pytest.raises(DataError, match="differs from its published MD5"):
        load_dataset(config(*arguments))
    monkeypatch.setitem(published_archives._IDX_MD5, "kmnist", tuple(digests))
    data = load_dataset(config(*arguments))
    np.testing.assert_array_equal(data.test.images[:, 0], images)
    np.testing.assert_array_equal(data.test.labels, labels)
    assert (len(data.train), len(data.validation)) == (22, 2)


@pytest.mark.skipif(
    "DROPSERVE_DATA_DIR" not in os.environ, reason="DROPSERVE_DATA_DIR names no data sets"
)
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_idx_files_load_with_their_published_sizes(name: str) -> None:
    data = load_dataset(config("--data", name))
    splits = (data.train, data.validation, data.test)
    assert len(data.train) + len(data.validation) == 60_000
    assert len(data.validation) == pytest.approx(5_000, abs=5)
    assert len(data.test) == 10_000
    for split in splits:
        assert split.images.shape[1:] == (1, 28, 28)
        assert set(split.labels.tolist()) == set(range(10))
    digests = {hashlib.sha256(image).digest() for split in splits for image in split.images}
    assert len(digests) > 69_900  # a few images were published twice


def test_subset_of_cifar_10_loads_with_a_name_that_marks_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = np.random.default_rng(0).integers(0, 256, (40, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(40) % 10
    folder = tmp_path / "cifar-10"
    folder.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(records.tobytes())
    data = load_dataset(config("--data", "cifar-10", "--data-dir", str(tmp_path)))
    assert data.name.startswith("part of cifar-10 (40 training and 40 test images)")
    assert "its accuracy is not CIFAR-10's" in caplog.text
    np.testing.assert_array_equal(data.test.images[3, 2].ravel(), records[3, 1 + 2048 :])
    (folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="not of CIFAR-10's binary layout"):
        load_dataset(config("--data", "cifar-10", "--data-dir", str(tmp_path)))


def test_failed_download_explains_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_arguments: object, **_options: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("pooch.retrieve", unreachable)
    monkeypatch.delenv("DROPSERVE_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"Cannot download .*; check the network, or put the file"):
        load_dataset(config("--data", "mnist", "--cache-dir", str(tmp_path)))


def test_dataset_of_fixed_size_is_resized() -> None:
    data = load_dataset(config("--data", "digits", "--image-size", "16", "--colour", "rgb"))
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert (data.input.height, data.input.channels) == (16, 3)
    assert data.defaults.shift == pytest.approx(1.2)


def test_image_that_vanishes_after_it_was_inspected_is_one_sentence(tmp_path: Path) -> None:
    spec = InputSpec(channels=3, height=8, width=8, resize="crop")
    here, gone = write_image(tmp_path, "here.png", 0), tmp_path / "gone.png"
    sentence = r"gone\.png could be read before .* \(No such file or directory\); .* start again\.$"
    with pytest.raises(DataError, match=sentence):
        decode_files([here, gone], spec, 1_000)
