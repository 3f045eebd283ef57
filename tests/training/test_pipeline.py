"""`python -m training`, in real processes where that makes a difference."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.errors import RunError, SettingsError
from model.inference.predictor_loading import load_predictor
from training import pipeline
from training.__main__ import main
from training.config import TrainingConfig
from training.data.dataset import load_dataset
from training.distributed.process_group import Processes

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


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Return a function that runs the command in this process, and returns its one line of errors.

    It asserts the exit status 2. Standard error escapes what it cannot encode, as a process's does.
    """
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)

    def run(*arguments: str) -> str:
        errors = TextIOWrapper(BytesIO(), encoding="utf-8", errors="backslashreplace")
        with redirect_stderr(errors):
            try:
                status: object = main(list(arguments))
            except SystemExit as end:
                status = end.code
        errors.seek(0)
        written = errors.read()
        assert status == 2
        assert written.count("\n") == 1
        return written

    return run


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
        (["--name", "stats"], "--name: 'stats' cannot name a new model"),
        (["--max-norm", "0"], "--max-norm: input should be greater than 0, but got '0'."),
        (["--max-norm", "inf"], "--max-norm: input should be a finite number, but got 'inf'."),
        (["--prune-dead", "--activation", "tanh"], "--prune-dead needs --activation relu: the"),
        (["--quantize", "--preset", "mlp"], "--quantize needs --preset cnn and --activation relu"),
        (["--config", "/no/such.toml"], "--config: cannot read /no/such.toml"),
    ],
)
def test_training_reports_a_wrong_option_in_one_sentence_with_status_2(
    refused: Refused, arguments: list[str], sentence: str
) -> None:
    assert sentence in refused(*arguments)


@pytest.mark.parametrize(
    ("batch_size", "validation", "devices", "sentence"),
    [
        (9, 2, 2, "the 9 images of a step cannot be divided equally among 2 processes, two or"),
        (12, 9, 6, "--devices: 11 training images are too few for 6 processes; use fewer."),
        (12, 2, 2, "12 is more than the 11 training images, .* among 2 processes; use 10."),
        (9, 2, 3, "--devices: 2 validation images are too few for 3 processes; use fewer."),
        (10, 2, 2, None),
        (12, 1, 1, None),
    ],
)
def test_processes_have_equal_shares_of_a_step_and_validation_images_each(
    batch_size: int, validation: int, devices: int, sentence: str | None
) -> None:
    data = load_dataset(TrainingConfig(data="digits"))
    small = replace(
        data,
        train=data.train.take(np.arange(11)),
        validation=data.validation.take(np.arange(validation)),
    )
    config = TrainingConfig(batch_size=batch_size)
    refusal = pytest.raises(SettingsError, match=sentence) if sentence else nullcontext()
    with refusal:
        pipeline.check_batch_size(config, small, Processes(count=devices))


NOT_UTF8 = os.fsdecode(b"m\xff")


@pytest.mark.parametrize("option", ["--output", "--runs", "--cache-dir", "--data-dir", "--config"])
def test_training_refuses_paths_that_are_not_utf8(
    refused: Refused, option: str, tmp_path: Path
) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    (folder / "pets").mkdir()
    for value in (folder, folder / "pets"):
        assert r"\udcff" in refused(option, str(value))
    sentence = "is not UTF-8; rename it, or choose another."
    assert sentence in refused("--data", f"folder:{folder / 'pets'}")
    assert not list((folder / "pets").iterdir())


def test_process_refuses_paths_that_are_not_utf8(tmp_path: Path) -> None:
    result = run_training("--output", str(tmp_path / NOT_UTF8))
    assert result.returncode == 2
    assert r"\udcff" in result.stderr
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


def test_training_reports_unusable_folders_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    folders = ["--output", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    unwritable = ["--output", str(tmp_path / "file"), "--runs", str(tmp_path / "runs")]
    for options, status, sentence in (
        (["--data", f"folder:{tmp_path / 'empty'}", *folders], 2, "has no images in class folders"),
        (["--resume", *folders], 2, "has no checkpoint; start without --resume"),
        (unwritable, 1, "Cannot write to"),
    ):
        assert main(options) == status
        errors = capsys.readouterr().err
        assert sentence in errors
        assert errors.count("\n") == 1
    assert not list((tmp_path / "models").iterdir())


RUN_FAILS = "Cannot write to RUN (Input/output error); free space on its disk, "
FILE_FAILS = "/a/1.onnx cannot be read or written (Input/output error); mend that, then "


@pytest.mark.parametrize(
    ("file", "has_checkpoint", "sentence"),
    [
        (None, False, RUN_FAILS + "or choose another with --runs."),
        (None, True, RUN_FAILS + "then go on with --resume."),
        ("/a/1.onnx", False, FILE_FAILS + "start again."),
        ("/a/1.onnx", True, FILE_FAILS + "go on with --resume."),
    ],
)
def test_training_names_the_file_that_failed_and_says_how_to_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str | None,
    has_checkpoint: bool,
    sentence: str,
) -> None:
    def fail(_config: object, _data: object, run: Path, *_: object, **__: object) -> None:
        if has_checkpoint:
            (run / "last.ckpt").touch()
        raise OSError(errno.EIO, os.strerror(errno.EIO), file)

    monkeypatch.setattr(pipeline, "fit", fail)
    config = TrainingConfig(output=tmp_path / "models", runs=tmp_path / "runs")
    with pytest.raises(RunError) as raised:
        pipeline.train(config)
    assert str(raised.value) == sentence.replace("RUN", str(config.runs / "digits" / "1"))


def test_sigterm_after_the_training_has_failed_prints_no_traceback(tmp_path: Path) -> None:
    command = (
        "import atexit, os, signal, sys; from training.__main__ import main; "
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM); "
        f"sys.exit(main(['--resume', '--output', {str(tmp_path)!r}, '--runs', {str(tmp_path)!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", command],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert "has no checkpoint" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def sigint_enabled() -> Iterator[None]:
    """Handle SIGINT: a background job of a shell ignores it, and so would its child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.training
@pytest.mark.usefixtures("sigint_enabled")
def test_interrupted_training_resumes_and_is_not_repeated(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
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

    assert main(["--epochs", "7", "--resume", *folders]) == 2
    assert "digits/1 was started with others: --epochs; use those in" in capsys.readouterr().err

    assert main(["--epochs", "6", "--resume", *folders]) == 0
    assert "epoch 6 of 6" in caplog.text
    assert "epoch 1 of 6" not in caplog.text
    assert "test images, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in caplog.text
    bundle = open_bundle(models / "digits" / "1")
    load_predictor(bundle)
    assert bundle.manifest.metrics["epochs"] == 6
    assert bundle.manifest.metrics["test"]["accuracy"] > 0.8
    plots = re.findall(r"\((\w+\.png)\)", bundle.card)
    assert len(plots) == 10
    assert {f"report/{plot}" for plot in plots} < set(bundle.manifest.files)
    assert "Calibrated on 179 validation images" in bundle.card
    assert "report/report.html" in bundle.manifest.files

    assert main(["--epochs", "6", "--resume", *folders]) == 2
    assert f"is finished, and its bundle is {models / 'digits' / '1'}" in capsys.readouterr().err

    assert main(["--epochs", "6", "--unless-exists", *folders]) == 0
    assert "is there already" in capsys.readouterr().out
    assert [entry.name for entry in (models / "digits").iterdir()] == ["1"]


@pytest.mark.training
def test_training_reports_and_prunes_units_killed_by_a_high_learning_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = ["--output", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    options = ["--preset", "mlp", "--epochs", "3", "--learning-rate", "10"]
    assert main([*options, "--prune-dead", *folders]) == 0
    assert "Warning: dense 1: " in caplog.text
    assert "Try --learning-rate 3.3, or --activation leaky_relu." in caplog.text
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
        assert sentence in caplog.text
        assert f"- {sentence}" in bundle.card.replace("\\_", "_")
