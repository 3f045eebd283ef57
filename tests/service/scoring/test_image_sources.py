"""Which images the arguments of the command name."""

import io
import os
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DropserveError, ImageTooLargeError
from service.scoring.csv_of_image_paths import PathTableError
from service.scoring.image_file import ImageReference, UnreadableFileError, display_name
from service.scoring.image_sources import FoundImages, find_images
from tests.pictures import encode

PICTURE = encode(np.zeros((8, 8), np.uint8))
MAX_BYTES = 10_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four images, and much else."""
    for name in ("b.png", "a.PNG", "deep/er/no_suffix", "deep/ünï 🐜.jpg"):
        write(tmp_path / "set" / name, PICTURE)
    write(tmp_path / "set" / "broken.jpg", b"text")
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "._b.png", "pipe.csv"):
        write(tmp_path / "set" / name, b"text")
    for name in (".git/c.png", "@eaDir/d.png", "__MACOSX/e.png"):
        write(tmp_path / "set" / name, PICTURE)
    (tmp_path / "set" / "deep" / "loop").symlink_to(tmp_path / "set")
    os.mkfifo(tmp_path / "set" / "fifo.png")
    return tmp_path / "set"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def find(*arguments: Path | str, outputs: Collection[Path] = ()) -> FoundImages:
    return find_images([str(each) for each in arguments], outputs)


def names(found: FoundImages, folder: Path) -> list[str]:
    return [image.name.removeprefix(f"{folder}/") for image in found.images]


IMAGES = ["a.PNG", "b.png", "broken.jpg", "deep/ünï 🐜.jpg", "deep/er/no_suffix"]


def test_folder_is_searched_for_images_in_a_fixed_order(folder: Path) -> None:
    found = find(folder)
    assert names(found, folder) == IMAGES
    assert found.left_out == 6  # the texts, what is hidden, and the pipe; not what is in .git


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "AVIF", "GIF"])
def test_image_without_suffix_is_found_whatever_its_format(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    write(tmp_path / "set" / "photo", file.getvalue())
    write(tmp_path / "set" / "BMW", b"BMW, Audi and so on")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "set" / "photo", "deep/photo")
    assert [image.name for image in find(tmp_path / "set", tmp_path / "set.zip").images] == [
        str(tmp_path / "set" / "photo"),
        str(tmp_path / "set.zip" / "deep" / "photo"),
    ]


def test_image_that_is_named_twice_is_found_once(folder: Path) -> None:
    assert names(find(folder / "b.png", folder, folder / "b.png"), folder) == [
        "b.png",
        *[name for name in IMAGES if name != "b.png"],
    ]


def test_image_that_is_named_by_another_path_is_found_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "link.png").symlink_to("b.png")
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        file.writestr("a.png", PICTURE)
        file.writestr("b.png", PICTURE)
    monkeypatch.chdir(folder)
    assert names(find("b.png", "set.zip"), folder) == ["b.png", "set.zip/a.png", "set.zip/b.png"]
    again = (f"{folder}/b.png", "deep/../b.png", "link.png", "deep/../set.zip", f"{folder}/b.*")
    found = find("b.png", "set.zip", *again)
    assert len(found.images) == 3
    assert found.named_again == 6


def test_pattern_is_expanded_as_a_shell_does(folder: Path) -> None:
    assert names(find(f"{folder}/[a-b].*"), folder) == ["a.PNG", "b.png"]
    assert names(find(f"{folder}/**/*🐜*"), folder) == ["deep/ünï 🐜.jpg"]
    assert names(find(f"{folder}/d?ep/er"), folder) == ["deep/er/no_suffix"]


@pytest.mark.parametrize("pattern", ["*", "**", "**/*"])
def test_pattern_leaves_out_what_a_folder_would(folder: Path, pattern: str) -> None:
    (folder / "a-gone.png").symlink_to("nowhere")
    write(folder / "results.csv", b"path,label\nb.png,7\n")
    found = find(f"{folder}/{pattern}")
    assert {*IMAGES, "a-gone.png"} <= set(names(found, folder))
    assert not {"notes.txt", "results.csv", "fifo.png"} & set(names(found, folder))
    assert found.left_out >= 5  # Thumbs.db and pipe.csv, too


def test_archive_that_a_pattern_matches_is_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("a.png", PICTURE)
    assert names(find(f"{tmp_path}/*.zip"), tmp_path) == ["set.zip/a.png"]


def test_file_that_the_run_writes_is_left_out_where_it_is_named(folder: Path) -> None:
    output = write(folder / "results.csv", b"path,label\nb.png,7\n")
    named = [folder / "a.PNG", folder / "deep" / ".." / "results.csv"]
    found = find(*named, outputs=[output])
    assert names(found, folder) == ["a.PNG"]
    assert found.left_out == 1


def test_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert names(find(write(tmp_path / "a[1].png", PICTURE)), tmp_path) == ["a[1].png"]


def test_single_file_is_taken_whatever_its_name(folder: Path) -> None:
    assert names(find(folder / "notes.txt"), folder) == ["notes.txt"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("path,label\na.PNG,x\n\ndeep/er/no_suffix,y\n", ["a.PNG", "deep/er/no_suffix"]),
        ("label,path\nx,a.PNG\ny,gone.png\n", ["a.PNG", "gone.png"]),
        ("file\na.PNG\n", ["a.PNG"]),
        ("a.PNG\nb.png\n", ["a.PNG", "b.png"]),
        ("gone.png\nb.png\n", ["gone.png", "b.png"]),
        ('\ufeffpath\r\n"a.PNG"\r\n', ["a.PNG"]),
        ("path;label\r\na.PNG;x\r\n", ["a.PNG"]),
        ("a.PNG;x\nb.png;y\n", ["a.PNG", "b.png"]),
        ("x\tPath\n1\ta.PNG\n", ["a.PNG"]),
        ("file;label\ngone.png;x,y\n", ["gone.png"]),
        ("sep=;\r\npath;label\r\na.PNG;x\r\n", ["a.PNG"]),
        ("path\n'a;b,c.png'\n".replace("'", '"'), ["a;b,c.png"]),
    ],
)
def test_table_names_paths_relative_to_itself(
    folder: Path, table: str, expected: list[str]
) -> None:
    file = write(folder / "table.csv", table.encode())
    assert names(find(file), folder) == expected


def test_what_a_table_names_in_vain_is_counted(folder: Path) -> None:
    file = write(folder / "table.csv", b"id,path\n1,a.PNG\n2,\n3\n\n4,a.PNG\n")
    found = find(file, file)
    assert names(found, folder) == ["a.PNG"]
    assert (found.rows_without_path, found.named_again) == (4, 3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"id,image\n1,a.PNG\n2,b.png\n", "has no column called path, and its first column"),
        (b"x" * 300 + b",a.PNG\n", "has no column called path, and its first column"),
        ("path\na.PNG\n".encode("utf-16"), "has zero bytes, as text in UTF-16 does; save it as"),
        (b"path\na\0.PNG\n", "has zero bytes, as text in UTF-16 does; save it as CSV in UTF-8"),
    ],
)
def test_table_that_names_no_paths_is_one_sentence(
    folder: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(PathTableError, match=sentence):
        find(write(folder / "table.csv", content))


def test_members_of_an_archive_are_read_in_memory(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    members = ["a.png", "in/no_suffix", "../../up.png", "/etc/root.png"]
    left_out = ["notes.txt", "__MACOSX/._a.png", ".hidden.png", "inner.zip"]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("folder.png")
        for name in members:
            file.writestr(name, PICTURE)
        for name in left_out:
            file.writestr(name, b"text")
    found = find(archive)
    assert names(found, archive) == ["a.png", "in/no_suffix", "../../up.png", "/etc/root.png"]
    assert found.left_out == len(left_out)
    assert [image.read(MAX_BYTES) for image in found.images] == [PICTURE] * 4
    assert [each.name for each in tmp_path.iterdir()] == ["images.zip"]


def test_costly_member_of_an_archive_fails_alone(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("bomb.png", bytes(MAX_BYTES + 1), zipfile.ZIP_DEFLATED)
        file.writestr("lzma.png", PICTURE, zipfile.ZIP_LZMA)
        file.writestr("good.png", PICTURE)
    data = bytearray(archive.read_bytes())
    data[data.index(PICTURE) + 30] ^= 1  # the checksum of good.png is wrong now
    damaged = write(tmp_path / "damaged.zip", bytes(data))
    bomb, lzma, good = find(archive).images
    with pytest.raises(ImageTooLargeError, match=r"10,001 bytes, more than the 10,000 allowed"):
        bomb.read(MAX_BYTES)
    with pytest.raises(DropserveError, match="packed with an unusual method"):
        lzma.read(MAX_BYTES)
    assert good.read(MAX_BYTES) == PICTURE
    with pytest.raises(DropserveError, match="damaged in its archive"):
        find(damaged).images[2].read(MAX_BYTES)


def test_file_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    gone = ImageReference(str(tmp_path / "gone.png"), "gone.png")
    with pytest.raises(UnreadableFileError, match="No such file"):
        gone.read(MAX_BYTES)
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(UnreadableFileError, match="not a regular file"):
        ImageReference(str(tmp_path / "fifo.png"), "fifo.png").read(MAX_BYTES)
    large = write(tmp_path / "large.png", bytes(MAX_BYTES + 1))
    with pytest.raises(ImageTooLargeError, match="--max-file-bytes"):
        ImageReference(str(large), "large.png").read(MAX_BYTES)


def test_name_is_one_line_of_unicode() -> None:
    assert display_name(os.fsdecode(b"a\xff\nb\tc")) == "a\\xff\\nb\\tc"
    assert display_name("ünï 🐜") == "ünï 🐜"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("gone", "gone: It cannot be read (No such file or directory); check its path and"),
        ("none*.png", "none*.png; check the pattern."),
        ("empty", "There is no image in "),
        ("fifo", "is neither a file nor a folder; name one that has images."),
        ("text.zip", "is not a zip archive that can be read (File is not a zip file)"),
        ("empty.csv", "There is no image in "),
    ],
)
def test_argument_that_names_nothing_is_an_error(
    tmp_path: Path, argument: str, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    write(tmp_path / "text.zip", b"text")
    write(tmp_path / "empty.csv", b"")
    with pytest.raises(DropserveError) as raised:
        find(tmp_path / argument)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
