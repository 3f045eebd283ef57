"""One folder with everything in it that users' folders have, and what becomes of each file."""

import io
import logging
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from model.images.preprocessing import InputSpec
from tests.pictures import bomb, encode_16_bits
from tests.training.data.folders import encoded, picture, write, write_class, write_one_scene
from training.data import image_inspection
from training.data.folder_splits import FolderSplits, SplitOptions, split_folder

SPEC = InputSpec(channels=3, height=16, width=16, resize="crop")


def options(**changes: object) -> SplitOptions:
    given: dict[str, object] = {
        "validation_share": 0.1,
        "test_share": 0.2,
        "split_seed": 0,
        "duplicates": "remove",
        "spec": SPEC,
        "max_pixels": 1_000_000,
    }
    return SplitOptions(**(given | changes))  # type: ignore[arg-type]


def names(folder: FolderSplits, split: str) -> set[str]:
    return {path.name for path, _ in folder.splits[split]}


def saved(image: Image.Image, file_format: str, **parameters: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **parameters)
    return file.getvalue()


def animated(file_format: str) -> bytes:
    frames = [picture(number) for number in (70, 71)]
    return saved(frames[0], file_format, save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(72), "JPEG", exif=exif)


def in_mif1_brand(avif: bytes) -> bytes:
    """Return an AVIF whose major brand is of all HEIF images, and AVIF a compatible brand."""
    return avif[:8] + b"mif1" + avif[12:]


TRAINED = {
    "with space.png": encoded(50),
    "émoji 🐈.png": encoded(51),
    "no suffix": encoded(52, "JPEG"),
    "phone.HEIC": encoded(53, "JPEG"),  # a JPEG, whatever its name says
    "old.jfif": encoded(54, "JPEG"),
    "upper.JPG": encoded(55, "JPEG"),
    "wrong.jpg": encoded(56, "PNG"),
    "bmp.bmp": encoded(57, "BMP"),
    "cmyk.jpg": saved(picture(58).convert("CMYK"), "JPEG"),
    "alpha.png": saved(picture(59).convert("RGBA"), "PNG"),
    "palette.png": saved(picture(60).convert("P"), "PNG"),
    "grey16.png": encode_16_bits(np.asarray(picture(61).convert("L"))),
    "one pixel.png": saved(picture(62, (1, 1)), "PNG"),
    "long.png": saved(picture(63, (20_000, 10)), "PNG"),
    "animated.gif": animated("GIF"),
    "animated.webp": animated("WEBP"),
    "scan.tif": encoded(65, "TIFF"),
    "scan": encoded(66, "TIFF", compression="tiff_lzw"),
    "new.avif": encoded(67, "AVIF"),
    "mif1": in_mif1_brand(encoded(68, "AVIF")),
    "exif.jpg": rotated(),
    "nested/deeper/one.png": encoded(64),
}
LEFT_OUT = {
    "hidden": {".DS_Store": b"x", "._x.jpg": b"x", "Thumbs.db": b"x", ".cat.png": encoded(80)},
    "system_folder": {"@eaDir/a.jpg": encoded(81), ".ipynb_checkpoints/b.png": encoded(82)},
    "empty": {"empty.jpg": b""},
    "not_image": {
        "text.jpg": b"no image",
        "labels.csv": b"a,b\n",
        "noise": bytes(range(200)),
        "BMW.txt": b"BMW, Audi and so on",
        "gone.png": b"<!DOCTYPE html><html><svg></svg> 404",
    },
    "unsupported": {
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "icon.ico": encoded(83, "ICO"),
        "float.tif": saved(picture(87).convert("L").convert("F"), "TIFF"),
    },
    "too_large": {"bomb.png": bomb(4_000, 4_000)},
    "damaged": {
        "cut.png": encoded(84)[:-300],
        "cut.jpg": encoded(85, "JPEG")[:200],
        "cut.tif": b"II*\0" + bytes(50),
    },
}


@pytest.fixture
def heic_files() -> dict[str, bytes]:
    """HEIC by suffix and without one."""
    pillow_heif = pytest.importorskip("pillow_heif")
    files = {}
    for number, name in enumerate(("phone.HEIC", "phone"), start=90):
        file = io.BytesIO()
        pillow_heif.from_pillow(picture(number, (64, 64))).save(file)
        files[name] = file.getvalue()
    return files


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    for name, content in TRAINED.items():
        write(tmp_path / "cat" / name, content)
    for files in LEFT_OUT.values():
        for name, content in files.items():
            write(tmp_path / "cat" / name, content)
    write(tmp_path / "cat" / os.fsdecode(b"latin\xe9.png"), encoded(86))
    write(tmp_path / "read me.txt", b"text")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    write_class(tmp_path / "dog", 0, 6)
    return tmp_path


def test_messy_folder_is_trained_on_and_says_what_was_left_out(
    messy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = split_folder(messy, options())
    listed = set.union(*(names(folder, split) for split in folder.splits))
    dogs = {f"{number}.png" for number in range(6)}
    cats = {name.rpartition("/")[2] for name in TRAINED} | {os.fsdecode(b"latin\xe9.png")}
    assert listed == cats | dogs
    expected = {reason: len(files) for reason, files in LEFT_OUT.items()}
    assert folder.manifest_entry()["left_out"] == {"outside": 1, "link": 1} | expected
    for files in LEFT_OUT.values():
        for name in files:
            assert f"cat/{name.partition('/')[0]}" in caplog.text
    assert "icon.ico (ICO)" in caplog.text
    assert "drawing.svg (SVG)" in caplog.text
    assert "4000 x 4000 pixels, more than the 1,000,000 allowed" in caplog.text


def test_heic_in_a_class_is_trained_on(tmp_path: Path, heic_files: dict[str, bytes]) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    for name, content in heic_files.items():
        write(tmp_path / "cat" / name, content)
    folder = split_folder(tmp_path, options())
    assert set(heic_files) <= set.union(*(names(folder, split) for split in folder.splits))
    assert folder.manifest_entry()["left_out"] == {}


def test_heic_without_pillow_heif_is_left_out_and_says_what_to_install(
    tmp_path: Path,
    heic_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    for name, content in heic_files.items():
        write(tmp_path / "cat" / name, content)
    with caplog.at_level(logging.WARNING):
        folder = split_folder(tmp_path, options())
    assert folder.manifest_entry()["left_out"] == {"unsupported": len(heic_files)}
    assert "pip install '.[heif]'" in caplog.text


def test_image_above_the_default_limit_of_requests_is_trained_on(tmp_path: Path) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    write(tmp_path / "dog" / "huge.jpg", saved(picture(3).resize((6_400, 4_900)), "JPEG"))
    folder = split_folder(tmp_path, options(max_pixels=250_000_000))
    assert sum(map(len, folder.splits.values())) == 11
    assert folder.left_out.counts() == {}


def test_image_too_narrow_for_the_wanted_size_is_left_out(tmp_path: Path) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    write(tmp_path / "dog" / "line.png", saved(picture(3, (9_000, 1)), "PNG"))
    padded = SPEC.model_copy(update={"resize": "pad"})
    folder = split_folder(tmp_path, options(spec=padded))
    assert folder.left_out.counts() == {"too_large": 1}


def test_images_that_would_be_enlarged_beyond_recognition_are_left_out(tmp_path: Path) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 40)
    for number, size in enumerate(((1, 1), (2, 900), (4, 4))):
        write(tmp_path / "dog" / f"small{number}.png", saved(picture(7 + number, size), "PNG"))
    large = SPEC.model_copy(update={"width": 64, "height": 64})
    assert split_folder(tmp_path, options(spec=large)).left_out.counts() == {"too_small": 2}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "Class 'owl' has 0 images that can be read; give it at least 3, or remove"),
        ({"a.jpg": b"text", "b.tif": b""}, "Class 'owl' has 0 images that can be read"),
        ({"a.png": encoded(1)}, "Class 'owl' has 1 image that can be read"),
        (
            {f"{number}.png": encoded(77) for number in range(9)},
            "Class 'owl' has 1 image when duplicates are left out; give it at least 3, add --dup",
        ),
    ],
)
def test_class_with_too_few_pictures_is_refused(
    tmp_path: Path, files: dict[str, bytes], sentence: str
) -> None:
    write_class(tmp_path / "cat", 0)
    (tmp_path / "owl").mkdir()
    for name, content in files.items():
        write(tmp_path / "owl" / name, content)
    with pytest.raises(DataError) as caught:
        split_folder(tmp_path, options())
    assert sentence in str(caught.value)


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    read_bytes = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    folder = split_folder(tmp_path, options())
    assert folder.left_out.names() == {"unreadable": ["cat/3.png (Permission denied)"]}


def write_with_duplicates(root: Path) -> None:
    """Write three splits; two training and one validation picture are also in a later split."""
    for first, split in enumerate(("train", "val", "test")):
        write_class(root / split / "cat", 100 * first)
        write_class(root / split / "dog", 100 * first + 50)
    write(root / "test" / "cat" / "equal.png", encoded(0))
    smaller = picture(151).resize((20, 15))
    write(root / "test" / "dog" / "again.jpg", saved(smaller, "JPEG", quality=60))
    write(root / "val" / "dog" / "other class.png", encoded(2))


def test_training_images_whose_picture_is_measured_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_with_duplicates(tmp_path)
    with caplog.at_level(logging.WARNING):
        folder = split_folder(tmp_path, options())
    assert names(folder, "train") == {f"{n}.png" for n in (1, 3, 4, *range(50, 55))}
    assert "151.png" not in names(folder, "validation")
    assert len(folder.splits["test"]) == 12
    assert folder.left_out.names()["duplicate"] == [
        "train/cat/0.png (= test/cat/equal.png)",
        "train/cat/2.png (= val/dog/other class.png)",
        "val/dog/151.png (= test/dog/again.jpg)",
    ]
    assert folder.manifest_entry()["duplicates"] == {
        "pictures": 3,
        "across_splits": 3,
        "in_two_classes": 1,
        "near": True,
    }
    assert "In two classes: 1 picture (train/cat/2.png = val/dog/other class" in caplog.text


def test_duplicates_are_kept_on_demand_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_with_duplicates(tmp_path)
    with caplog.at_level(logging.WARNING):
        folder = split_folder(tmp_path, options(duplicates="keep"))
    assert len(folder.splits["train"]) == 10
    assert "duplicate" not in folder.left_out.counts()
    assert "3 images of the training and validation splits show a picture" in caplog.text


@pytest.mark.parametrize("duplicates", ["remove", "keep"])
def test_photographs_of_one_scene_are_trained_on(
    tmp_path: Path, duplicates: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_one_scene(tmp_path, 20)
    with caplog.at_level(logging.WARNING):
        folder = split_folder(tmp_path, options(duplicates=duplicates))
    assert sum(map(len, folder.splits.values())) == 40
    assert not folder.manifest_entry()["duplicates"]["near"]
    assert "only equal files were taken as duplicates" in caplog.text


def test_class_of_few_photographs_of_one_scene_is_trained_on_if_duplicates_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_one_scene(tmp_path, 6)
    with pytest.raises(DataError, match="add --duplicates keep"):
        split_folder(tmp_path, options())
    with caplog.at_level(logging.WARNING):
        folder = split_folder(tmp_path, options(duplicates="keep"))
    assert sum(map(len, folder.splits.values())) == 12
    assert "10 images of the training and validation splits show a picture" in caplog.text


def test_copies_of_a_picture_are_drawn_into_one_split(tmp_path: Path) -> None:
    for first, name in enumerate(("cat", "dog")):
        for number in range(100 * first, 100 * first + 12):
            write(tmp_path / name / f"{number}-a.png", encoded(number))
            write(tmp_path / name / f"{number}-b.jpg", encoded(number, "JPEG", quality=70))
    for seed in range(3):
        folder = split_folder(tmp_path, options(split_seed=seed))
        pictures = [
            {name.partition("-")[0] for name in names(folder, split)} for split in folder.splits
        ]
        assert sum(map(len, pictures)) == len(set.union(*pictures)) == 24
        assert all(map(len, folder.splits.values()))


def test_class_of_a_thousand_times_as_many_is_trained_on(tmp_path: Path) -> None:
    write_class(tmp_path / "cat", 0, 3)
    (tmp_path / "dog").mkdir()
    for number in range(3_000):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 102, 0, 0, 54, 40, 4, 4, 1, 24, *[0] * 6)
        (tmp_path / "dog" / f"{number}.bmp").write_bytes(header + pixels.tobytes())
    folder = split_folder(tmp_path, options())
    assert len(folder.splits["train"]) > 2_000
    for split in folder.splits:
        assert {label for _, label in folder.splits[split]} == {0, 1}


def test_video_in_a_class_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class(tmp_path / "cat", 0)
    write_class(tmp_path / "dog", 10)
    monkeypatch.setattr(image_inspection, "_MAX_FILE_BYTES", 10_000)
    write(tmp_path / "dog" / "film.mp4", b"\0\0\0\x18ftypmp42" + bytes(20_000))
    write(tmp_path / "dog" / "long.jpg", encoded(3, "JPEG") + bytes(2**21))
    folder = split_folder(tmp_path, options(max_pixels=2**18))
    assert folder.left_out.names() == {
        "not_image": ["dog/film.mp4"],
        "too_large": ["dog/long.jpg (JPEG, 2 MiB)"],
    }
    assert split_folder(tmp_path, options(max_pixels=2**20)).left_out.names() == {
        "not_image": ["dog/film.mp4"]
    }
