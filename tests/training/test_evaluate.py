"""`python -m training.evaluate`, over the real bundle."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from model.bundle.store import open_bundle
from model.errors import SettingsError
from tests.bundles import copy_bundle, edit_manifest
from training.adopt import adopt
from training.data.dataset import Split
from training.evaluate import evaluate_bundle, main
from training.evaluation_config import EvaluationConfig


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, held_out: Split) -> Path:
    """Return a folder of enlarged digits in RGB with two classes, `left` and `right`."""
    folder = tmp_path_factory.mktemp("scans") / "my (old) scans"
    for row in range(24):
        place = folder / ("left" if row % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        large = np.stack([held_out.images[row, 0].repeat(4, axis=0).repeat(4, axis=1)] * 3, axis=-1)
        Image.fromarray(255 - large).save(place / f"{row}.png")
    return folder


def test_evaluate_bundle_reproduces_the_metrics_of_the_training(
    tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ignores the environment variables of a training, which would give other data."""
    monkeypatch.setenv("DROPSERVE_TRAINING_VALIDATION_SHARE", "0.3")
    monkeypatch.setenv("DROPSERVE_TRAINING_EPOCHS", "0")
    folder = evaluate_bundle(EvaluationConfig(bundle=bundle_folder, output=tmp_path))
    assert folder == tmp_path / "digits-1"
    metrics = json.loads((folder / "figures.json").read_bytes())
    assert metrics == open_bundle(bundle_folder).manifest.metrics["test"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "none of them was seen in training" in page
    assert "Out-of-distribution images" not in page
    assert page.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) == 8


def test_evaluate_leaves_the_earlier_metrics_on_a_full_disk(
    tmp_path: Path,
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = tmp_path / "digits-1" / "figures.json"
    metrics.parent.mkdir()
    metrics.write_text("earlier")
    monkeypatch.setattr(os, "fsync", full)
    assert main([str(bundle_folder), f"--output={tmp_path}"]) == 2
    assert "(No space left on device); free space" in capsys.readouterr().err
    assert [each.read_text() for each in metrics.parent.iterdir()] == ["earlier"]


def test_evaluate_detects_out_of_distribution_images_of_another_size_in_a_folder_of_any_name(
    tmp_path: Path, bundle_folder: Path, scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [f"--ood=folder:{scans}", f"--output={tmp_path}"]
    assert main([str(bundle_folder), *options]) == 0
    ood = json.loads((tmp_path / "digits-1" / "figures.json").read_bytes())["strangers"]
    assert (ood["name"], ood["images"]) == (scans.name, 4)
    # The scans are black on white, the training images white on black.
    assert ood["scores"]["typicality"]["auroc"] > 0.9
    assert (
        f"Out-of-distribution images: {scans.name}"
        in (tmp_path / "digits-1" / "report.html").read_text()
    )
    assert "report.html" in caplog.messages[-1]
    assert f"Measuring 4 images of {scans.name}." in caplog.messages


def test_evaluate_bundle_loads_images_of_the_height_and_width_of_the_network(
    tmp_path: Path, scans: Path
) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 20, 8), nn.ReLU(), nn.Linear(8, 2))
    data = f"folder:{scans}"
    bundle = adopt(
        module, torch.rand(1, 3, 12, 20), data=data, name="wide", dropout="0.1", output=tmp_path
    )
    folder = evaluate_bundle(
        EvaluationConfig(bundle=bundle, data=data, ood="digits", output=tmp_path / "out")
    )
    metrics = json.loads((folder / "figures.json").read_bytes())
    assert metrics["images"] > 0
    assert metrics["strangers"]["images"] > 0


def test_evaluate_bundle_uses_the_data_split_of_the_training(
    tmp_path: Path, bundle_folder: Path
) -> None:
    """With another data split, images of the training would be measured."""
    place = copy_bundle(bundle_folder, tmp_path / "models")
    training = open_bundle(place).manifest.training
    edit_manifest(place, training=training | {"split_seed": 5})
    folder = evaluate_bundle(EvaluationConfig(bundle=place, output=tmp_path))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "not the very images and draw" in page


def test_evaluate_bundle_refuses_a_bundle_that_names_no_data_set(
    tmp_path: Path, bundle_folder: Path
) -> None:
    place = copy_bundle(bundle_folder, tmp_path / "models")
    edit_manifest(place, training={})
    with pytest.raises(SettingsError, match="name --data"):
        evaluate_bundle(EvaluationConfig(bundle=place, output=tmp_path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data=fashion"], "--data: 'fashion' is not a data set; choose digits, mnist"),
        (["--ood=fashion"], "--ood: 'fashion' is not a data set; choose digits"),
        (["--ood=folder:nowhere"], "--ood: there is no folder nowhere"),
        (["--data-dir=nowhere"], "--data-dir: there is no folder nowhere"),
    ],
)
def test_evaluate_reports_a_wrong_option_in_one_sentence(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(bundle_folder), *options])
    assert capsys.readouterr().err.startswith(sentence)


def test_evaluate_refuses_other_classes_and_advises_ood(
    tmp_path: Path, bundle_folder: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle_folder), f"--data=folder:{scans}", f"--output={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{scans.name} has other classes than {bundle_folder}; ")
    assert "--ood" in message
    assert message.count("\n") == 1


def test_evaluate_refuses_a_folder_without_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
