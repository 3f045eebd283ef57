"""`python -m training.select`, over the real bundle."""

import csv
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.bundle.store import open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor_loading import load_predictor
from tests.bundles import copy_bundle, edit_manifest
from tests.training.data.folders import write
from training.config import TrainingConfig
from training.data.dataset import Split
from training.pipeline import train
from training.select import main, require_dropout
from training.selection.choose_images import Chosen, choose_images
from training.selection.pool import FolderPool
from training.selection.selection_config import SelectionConfig
from training.selection.selection_list import SelectedImage

FEW_SAMPLES = ["--samples", "32"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, held_out: Split) -> Path:
    """Return a folder of digits: each twice, once in a folder inside it, beside a broken file."""
    folder = tmp_path_factory.mktemp("pool") / "<b>scans & more"
    (folder / "again").mkdir(parents=True)
    for row in range(40):
        picture = Image.fromarray(held_out.images[row, 0])
        picture.save(folder / f"{row}.png")
        picture.save(folder / "again" / f"{row}.bmp")
    write(folder / "broken.png", b"\x89PNG\r\n\x1a\n and no more")
    return folder


def select(bundle: Path, pool: str, output: Path, *options: str) -> list[SelectedImage]:
    arguments = ["--model", str(bundle), "--pool", pool, "--output", str(output)]
    assert main([*arguments, *FEW_SAMPLES, *options]) == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    if output.suffix == ".jsonl":
        return [SelectedImage.model_validate_json(line) for line in lines]
    rows = [{key: cell or None for key, cell in row.items()} for row in csv.DictReader(lines)]
    return [SelectedImage.model_validate(row) for row in rows]


@pytest.mark.parametrize("method", ["batchbald", "bald", "entropy", "variation-ratio", "typical"])
def test_list_is_equal_to_the_byte_with_one_and_two_threads(
    method: str, tmp_path: Path, bundle_folder: Path
) -> None:
    options = ["--count", "30", "--method", method]
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    listed = select(bundle_folder, "digits", one, *options, "--threads", "1")
    select(bundle_folder, "digits", two, *options, "--threads", "2")
    assert one.read_bytes() == two.read_bytes()
    assert [each.rank for each in listed] == list(range(1, 31))
    values = [each.value for each in listed]
    assert values == sorted(values, reverse=True)
    assert len({each.path for each in listed}) == 30
    assert all(each.typicality is not None and each.typicality >= 0.01 for each in listed)


def test_value_of_each_method_is_its_figure(tmp_path: Path, bundle_folder: Path) -> None:
    for method, figure in {
        "bald": "mutual_information",
        "entropy": "predictive_entropy",
        "variation-ratio": "variation_ratio",
    }.items():
        listed = select(bundle_folder, "digits", tmp_path / f"{method}.jsonl", "--method", method)
        assert len(listed) == 100
        assert [each.value for each in listed] == [getattr(each, figure) for each in listed]


def test_first_image_of_batchbald_is_that_of_bald(tmp_path: Path, bundle_folder: Path) -> None:
    (first,) = select(bundle_folder, "digits", tmp_path / "1.csv", "--count", "1")
    (other,) = select(
        bundle_folder, "digits", tmp_path / "2.csv", "--count", "1", "--method", "bald"
    )
    assert first.path == other.path


def test_random_is_drawn_by_the_seed(tmp_path: Path, bundle_folder: Path) -> None:
    drawn = [
        [
            each.path
            for each in select(bundle_folder, "digits", tmp_path / f"{number}.csv", *options)
        ]
        for number, seed in enumerate("001")
        for options in [["--method", "random", "--count", "20", "--seed", seed]]
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("method", ["batchbald", "bald"])
def test_folder_gives_no_picture_twice_and_names_its_broken_file(
    method: str,
    tmp_path: Path,
    bundle_folder: Path,
    scans: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = f"folder:{scans}"
    options = ["--method", method, "--typicality-at-least", "0"]
    listed = select(bundle_folder, pool, tmp_path / "once.csv", *options)
    stems = [Path(each.path).stem for each in listed]
    assert len(set(stems)) == len(stems) <= 40
    assert "broken.png" in caplog.text
    assert "Left out, as a better image shows the same picture: " in caplog.text
    options += ["--duplicates", "keep", "--count", "80"]
    assert len(select(bundle_folder, pool, tmp_path / "all.csv", *options)) == 80


def test_no_file_is_left_where_one_of_two_cannot_be_written(
    tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_small_files(file: Path, content: bytes) -> None:
        if file.suffix == ".html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write_bytes(content)

    files = ["--output", str(tmp_path / "a.csv"), "--contact-sheet", str(tmp_path / "a.html")]
    options = ["--model", str(bundle_folder), "--pool", "digits", "--count", "2", *files]
    with monkeypatch.context() as patch:
        patch.setattr("training.select.write_new", write_small_files)
        assert main([*options, *FEW_SAMPLES]) == 2
    assert not list(tmp_path.iterdir())
    assert main([*options, *FEW_SAMPLES]) == 0


@pytest.mark.parametrize("taken", ["a.csv", "a.html"])
def test_list_that_somebody_has_written_meanwhile_stays(
    tmp_path: Path,
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    taken: str,
) -> None:
    file = tmp_path / taken

    def choose_meanwhile(*arguments: Any) -> Chosen:
        file.write_bytes(b"of somebody")
        return choose_images(*arguments)

    files = ["--output", str(tmp_path / "a.csv"), "--contact-sheet", str(tmp_path / "a.html")]
    options = ["--model", str(bundle_folder), "--pool", "digits", "--count", "2", *files]
    monkeypatch.setattr("training.selection.choose_images.choose_images", choose_meanwhile)
    assert main([*options, *FEW_SAMPLES]) == 2
    sentence = f"{file} exists by now, and somebody may work with it; name another.\n"
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"of somebody"


def test_list_agrees_with_what_the_bundle_says(
    tmp_path: Path, bundle_folder: Path, scans: Path, held_out: Split
) -> None:
    listed = select(
        bundle_folder, f"folder:{scans}", tmp_path / "a.jsonl", "--typicality-at-least", "0"
    )
    bundle = open_bundle(bundle_folder)
    names = bundle.manifest.class_names
    predictor = load_predictor(bundle)
    prediction = predictor.predict(to_float(held_out.images))
    uncertainty = predictor.uncertainty(prediction, FixedSamples(seed=0, samples=32))
    for each in listed:
        row = int(Path(each.path).stem)
        assert each.label == names[uncertainty.labels[row]]
        assert each.confidence == pytest.approx(uncertainty.confidences()[row], rel=1e-5)
        assert each.typicality == pytest.approx(uncertainty.typicality[row], rel=1e-5)
        assert each.mutual_information == pytest.approx(
            uncertainty.mutual_information[row], abs=1e-5
        )


def test_typicality_limits_leave_out_unusual_images_or_bring_them_in(
    tmp_path: Path, bundle_folder: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"noise{number}.png")
    pool = f"folder:{tmp_path}"
    assert select(bundle_folder, pool, tmp_path / "usual.csv") == []
    unusual = select(bundle_folder, pool, tmp_path / "unusual.csv", "--typicality-at-most", "0.01")
    assert len(unusual) == 12
    assert max(each.typicality or 0 for each in unusual) <= 0.01


def test_contact_sheet_shows_each_image_and_escapes_its_name(
    tmp_path: Path, bundle_folder: Path, scans: Path
) -> None:
    sheet = tmp_path / "sheet.html"
    listed = select(
        bundle_folder, f"folder:{scans}", tmp_path / "a.csv", "--contact-sheet", str(sheet)
    )
    page = sheet.read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == len(listed) > 30
    assert "&lt;b&gt;scans &amp; more" in page
    assert "<b>" not in page
    assert "<script" not in page


def test_list_is_written_only_with_its_contact_sheet(
    tmp_path: Path, bundle_folder: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderPool, "show", interrupt)
    files = ["--output", str(tmp_path / "a.csv"), "--contact-sheet", str(tmp_path / "a.html")]
    options = ["--model", str(bundle_folder), "--pool", f"folder:{scans}", *files, *FEW_SAMPLES]
    assert main(options) == 130
    assert not list(tmp_path.iterdir())


def test_name_of_a_file_is_no_formula_of_a_spreadsheet(
    tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.png", "-x.png", "@SUM(A1).png", "+1.png", "usual.png"):
        Image.linear_gradient("L").save(name)
    options = ["--typicality-at-least", "0", "--duplicates", "keep"]
    paths = {each.path for each in select(bundle_folder, "folder:.", Path("a.csv"), *options)}
    assert paths == {"./=1+1.png", "./-x.png", "./@SUM(A1).png", "./+1.png", "usual.png"}
    assert all(Path(each).is_file() for each in paths)


def test_uncalibrated_bundle_knows_no_typicality(
    tmp_path: Path,
    bundle_folder: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = copy_bundle(bundle_folder, tmp_path / "models")
    edit_manifest(bundle, calibration=None)
    listed = select(bundle, "digits", tmp_path / "a.csv", "--count", "5")
    assert [each.typicality for each in listed] == [None] * 5
    assert "unusual images are not left out" in caplog.text
    options = ["--pool", "digits", "--output", str(tmp_path / "b.csv"), "--method", "typical"]
    assert main(["--model", str(bundle), *options]) == 2
    assert "is not calibrated and knows no typicality" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["batchbald", "bald", "variation-ratio", "typical"])
def test_method_that_compares_samples_is_refused_without_dropout(
    method: str, tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = without_dropout(bundle_folder, tmp_path)
    options = ["--pool", "digits", "--output", str(tmp_path / "a.csv"), "--method", method]
    assert main(["--model", str(bundle), *options]) == 2
    sentence = "has no dropout, so all samples of an image are equal and tell no image from another"
    assert f"{bundle} {sentence}; use --method entropy or random.\n" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["entropy", "random"])
def test_method_without_samples_needs_no_dropout(
    method: str, tmp_path: Path, bundle_folder: Path
) -> None:
    bundle = without_dropout(bundle_folder, tmp_path)
    options = {"model": bundle, "pool": "digits", "method": method, "output": tmp_path / "a.csv"}
    require_dropout(SelectionConfig.model_validate(options), open_bundle(bundle))


def without_dropout(bundle_folder: Path, folder: Path) -> Path:
    bundle = copy_bundle(bundle_folder, folder / "models")
    layers = open_bundle(bundle).manifest.dropout_layers
    edit_manifest(bundle, dropout_layers=[{"p": 0, "width": layer.width} for layer in layers])
    return bundle


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pool", "nowhere"], "'nowhere' is not a data set"),
        (["--output", "list.txt"], "end it in .csv or .jsonl"),
        (["--output", "{there}"], "exists, and somebody may work with it; name another."),
        (["--contact-sheet", "{there}"], "exists, and somebody may work with it; name another."),
        (["--contact-sheet", "new.csv"], "name one file; name two."),
        (["--contact-sheet", "{new}"], "name one file; name two."),
        (["--shortlist", "5"], "--shortlist is less than --count 100; give at least that."),
        (["--shortlist", "200", "--method", "bald"], "of --method batchbald alone; leave it out."),
        (["--typicality-at-least", "0.5", "--typicality-at-most", "0.1"], "no image is between."),
        (["--samples", "4096", "--count", "9999"], "take more than 1 GiB; lower --samples"),
        (["--output", "no/such/folder.csv"], "there is no folder no/such; name one that exists."),
        (["--model", "no/such/1"], "cannot be read"),
    ],
)
def test_wrong_use_ends_with_one_sentence(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    bundle_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").touch()
    named = {"there": tmp_path / "there.csv", "new": tmp_path / "new.csv"}
    given = [each.format(**named) for each in options]
    arguments = ["--model", str(bundle_folder), "--pool", "digits", "--output", "new.csv"]
    try:
        status = main([*arguments, *given])
    except SystemExit as exited:
        status = int(str(exited.code))
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert not (tmp_path / "new.csv").exists()


def test_empty_pools_are_refused(
    tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, texts = tmp_path / "empty", tmp_path / "texts"
    empty.mkdir()
    write(texts / "a.txt", b"no image")
    for folder, sentence in ((empty, "has no files"), (texts, "has no image that can be read")):
        options = ["--pool", f"folder:{folder}", "--output", str(tmp_path / "a.csv")]
        assert main(["--model", str(bundle_folder), *options]) == 2
        assert sentence in capsys.readouterr().err


def test_too_large_image_is_left_out(
    tmp_path: Path, bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for side in (8, 64):
        noise = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{side}.png")
    options = ["--max-image-megapixels", "0.002", "--typicality-at-least", "0"]
    (only,) = select(bundle_folder, f"folder:{tmp_path}", tmp_path / "a.csv", *options)
    assert Path(only.path).name == "8.png"
    assert "64.png" in caplog.text


@pytest.mark.training
def test_training_with_added_images_says_what_they_brought(
    tmp_path: Path, bundle_folder: Path, held_out: Split
) -> None:
    for row in range(20):
        noisy = np.clip(held_out.images[row, 0] + np.eye(8) * 60, 0, 255).astype(np.uint8)
        place = tmp_path / "labelled" / str(held_out.labels[row])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(place / f"{row}.png")
    config = TrainingConfig(
        data="digits",
        epochs=2,
        add=f"folder:{tmp_path / 'labelled'}",
        compare_with=bundle_folder,
        output=tmp_path / "models",
        runs=tmp_path / "runs",
    )
    bundle = open_bundle(train(config))
    earlier = bundle.manifest.metrics["earlier"]
    before = open_bundle(bundle_folder).manifest
    assert earlier["accuracy"] == before.metrics["test"]["accuracy"]
    assert 0 < earlier["p_value"] <= 1
    added = bundle.manifest.data["added"]
    assert bundle.manifest.data["train"] == before.data["train"] + sum(
        added["images_per_class"].values()
    )
    assert "## What the added images brought" in bundle.card
    assert "| before: digits, version 1 |" in bundle.card
