"""`python -m service.feedback`: show, export and reset a file, while a service may write."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.feedback.feedback_command import main
from service.feedback.image_export import folder_name
from service.traffic_log.image_files import encode_image
from tests.service.feedback.test_feedback_writer import VERSION, Writing, writing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with labels that broke both promises, and kept images of two classes."""
    path = tmp_path / "feedback.db"
    with writing(path) as service:
        label_many(service)
    return path


def label_many(service: Writing) -> None:
    image = np.zeros((1, 8, 8), np.float32)
    png = encode_image(image)[1]
    for number in range(40):
        service.answer(f"r-{number}")
        service.label(f"r-{number}", "7", png=png if number < 3 else None)
    service.label("r-0", "8")


def test_show_has_the_figures_and_alarms(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "digits 1: 40 labels"
    assert "accuracy 0.0000 (0.0000 to 0.0876)" in lines
    assert "set size 2.0000" in lines
    assert "calibration error 0.8000" in lines
    assert any(line.startswith("max_risk broken since label") for line in lines)
    assert any(line.startswith("coverage 0.9 (thr) broken since label") for line in lines)


def test_show_tells_two_bundles_of_one_version_number_apart(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with writing(file) as service:
        service.answer("new", version=VERSION._replace(digest="12345678" * 4))
        service.label("new", "3")
    assert main(["show", str(file)]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.endswith("labels")]
    assert heads == [
        "digits 1 (bundle 00000000): 40 labels",
        "digits 1 (bundle 12345678): 1 labels",
    ]


def test_images_of_two_models_are_exported_one_model_at_a_time(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = encode_image(np.zeros((1, 16, 16), np.float32))[1]
    with writing(file) as service:
        service.answer("other", version=VERSION._replace(model="other"))
        service.label("other", "7")
        command = ["export", str(file), "--output"]
        assert main([*command, str(tmp_path / "one")]) == 0, "other has no image yet"
        service.label("other", "8", png=png)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "two")]) == 2
    sentence = capsys.readouterr().err
    assert "has kept images of several models" in sentence
    assert sentence.endswith("name one with --model: digits, other.\n")
    assert not (tmp_path / "two").exists()
    assert main([*command, str(tmp_path / "two"), "--model", "other"]) == 0
    assert f"1 images of other in {tmp_path / 'two'}" in capsys.readouterr().out


def test_export_writes_kept_images_by_their_present_class(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "images"
    assert main(["export", str(file), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"7: 2 images\n8: 1 images\n3 images of digits in {output}\n"
    found = sorted(each.relative_to(output).parts[0] for each in output.rglob("*.png"))
    assert found == ["7", "7", "8"]
    with Image.open(next(output.rglob("*.png"))) as picture:
        assert picture.size == (8, 8)
    assert not list(tmp_path.glob("new/.*")), "no draft is left"
    assert main(["export", str(file), "--output", str(output)]) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err


def test_reset_ends_alarms_and_keeps_labels(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reset", str(file), "--model", "digits", "--version", "1"]) == 0
    assert main(["show", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "digits 1: tested anew\ndigits 1: 40 labels" in printed
    assert "broken" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "FILE", "--model", "cats"], "has nothing of that; it has digits 1.\n"),
        (["show", "nowhere.db"], "cannot be opened (No such file or directory)"),
        (["show", "FILE", "--output", "x"], "--output: for export, and needed there.\n"),
        (["export", "FILE"], "--output: for export, and needed there.\n"),
    ],
)
def test_wrong_use_is_one_sentence(
    file: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(file) if each == "FILE" else each for each in arguments]
    if sentence.startswith("--output"):
        with pytest.raises(SystemExit, match="2"):
            main(given)
    else:
        assert main(given) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sentence in printed.err


def test_reset_waits_for_a_service_that_writes(file: Path) -> None:
    with writing(file) as service:
        assert main(["reset", str(file)]) == 0
        assert service.label("r-1", "7").outcome == "unchanged"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cat", "cat"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%2Fb"),
        ("..", "%2E."),
        ("50%", "50%"),
        ("50%/\n", "50%%2F%0A"),
        ("Käse 1", "Käse 1"),
    ],
)
def test_folder_of_a_class_is_a_single_name(name: str, folder: str) -> None:
    assert folder_name(name) == folder
