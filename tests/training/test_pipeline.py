"""Runs `python -m training` in real processes, as a user does."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.bundle.store import open_bundle
from model.inference.predictor_loading import load_predictor

Completed = subprocess.CompletedProcess[str]


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "DROPSERVE" not in name}
    return kept | extra


def run_training(*arguments: str, **extra: str) -> Completed:
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(**extra),
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--dropout", "1"], "--dropout: input should be less than 1, but got '1'."),
        (["--epochs", "0"], "--epochs: input should be greater than or equal to 1"),
        (["--activation", "step"], "--activation: input should be 'relu', 'leaky_relu'"),
        (["--data", "nist"], "--data: 'nist' is not a data set; choose digits, mnist"),
        (["--data", "folder:/no/such"], "--data: there is no folder /no/such; name one"),
        (["--data-dir", "/no/such"], "--data-dir: there is no folder /no/such"),
        (["--name", "a/b"], "--name: 'a/b' cannot name a model"),
        (["--max-norm", "0"], "--max-norm: input should be greater than 0, but got '0'."),
        (["--prune-dead", "--activation", "tanh"], "--prune-dead needs --activation relu: the"),
        (["--quantize", "--preset", "mlp"], "--quantize needs --preset cnn and --activation relu"),
        (["--config", "/no/such.toml"], "--config: cannot read /no/such.toml"),
    ],
)
def test_training_reports_a_wrong_option_in_one_sentence_with_status_2(
    arguments: list[str], sentence: str
) -> None:
    result = run_training(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_training_reports_a_wrong_environment_variable_in_one_sentence() -> None:
    result = run_training(DROPSERVE_TRAINING_PATIENCE="0")
    assert result.returncode == 2
    assert "--patience: input should be greater than or equal to 1" in result.stderr


def test_help_lists_options_with_defaults_and_environment_variables() -> None:
    result = run_training("--help")
    printed = " ".join(result.stdout.split())
    assert result.returncode == 0
    assert (
        "probability of zeroing, 0..1 (default: 0.5) [env: DROPSERVE_TRAINING_DROPOUT]" in printed
    )
    assert "--data-dir" in printed
    assert "--resume" in printed


def test_training_reports_unusable_folders_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    folders = ["--output", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    empty = run_training("--data", f"folder:{tmp_path / 'empty'}", *folders)
    assert empty.returncode == 2
    assert "has no images" in empty.stderr
    not_resumable = run_training("--resume", *folders)
    assert not_resumable.returncode == 2
    assert "has no checkpoint; start without --resume" in not_resumable.stderr
    unwritable = run_training("--output", str(tmp_path / "file"), "--runs", str(tmp_path / "runs"))
    assert unwritable.returncode == 1
    assert "Cannot write to" in unwritable.stderr
    for result in (empty, not_resumable, unwritable):
        assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "models").iterdir())


@pytest.fixture
def sigint_enabled() -> Iterator[None]:
    """Handle SIGINT: a background job of a shell ignores it, and so would its child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_enabled")
def test_interrupted_training_resumes_and_is_not_repeated(tmp_path: Path) -> None:
    """Follows one run: Ctrl-C, refused with other options, resumed, exported, not trained again."""
    models, runs = tmp_path / "models", tmp_path / "runs"
    folders = ["--output", str(models), "--runs", str(runs)]
    command = [sys.executable, "-u", "-m", "training", "--epochs", "6", *folders]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("epoch 2 of 6"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.endswith("Interrupted; no bundle was written. Go on with --resume.\n")
    assert not list(models.iterdir())

    other = run_training("--epochs", "7", "--resume", *folders)
    assert other.returncode == 2
    assert "was started with other options or images" in other.stderr

    resumed = run_training("--epochs", "6", "--resume", *folders)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 6 of 6" in resumed.stdout
    assert "epoch 1 of 6" not in resumed.stdout
    bundle = open_bundle(models / "digits" / "1")
    load_predictor(bundle)
    assert bundle.manifest.metrics["epochs"] == 6
    assert bundle.manifest.metrics["test"]["accuracy"] > 0.8
    plots = re.findall(r"\((\w+\.png)\)", bundle.card)
    assert len(plots) == 10
    assert {f"report/{plot}" for plot in plots} < set(bundle.manifest.files)
    assert "Calibrated on 179 validation images" in bundle.card
    assert "report/report.html" in bundle.manifest.files

    again = run_training("--epochs", "6", "--unless-exists", *folders)
    assert again.returncode == 0
    assert "is there already" in again.stdout
    assert [entry.name for entry in (models / "digits").iterdir()] == ["1"]


def test_training_reports_and_prunes_units_killed_by_a_high_learning_rate(tmp_path: Path) -> None:
    folders = ["--output", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    options = ["--preset", "mlp", "--epochs", "3", "--learning-rate", "10"]
    result = run_training(*options, "--prune-dead", *folders)
    assert result.returncode == 0, result.stderr
    assert "Warning: dense 1: " in result.stdout
    assert "Try --learning-rate 3.3, or --activation leaky_relu." in result.stdout
    bundle = open_bundle(tmp_path / "models" / "digits" / "1")
    load_predictor(bundle)
    diagnosis = bundle.manifest.metrics["diagnosis"]
    (layer,) = diagnosis["layers"]
    assert (layer["name"], layer["units"]) == ("dense 1", 500)
    assert layer["dead"] >= diagnosis["pruned_units"] > 250
    assert layer["deaths"] - layer["revivals"] > 250
    kept = 500 - diagnosis["pruned_units"]
    assert bundle.manifest.features == bundle.manifest.dropout_layers[0].width == kept
    assert bundle.manifest.parameters == 64 * kept + kept + kept * 10 + 10
    for sentence in diagnosis["advice"]:
        assert sentence in result.stdout
        assert f"- {sentence}" in bundle.card.replace("\\_", "_")
