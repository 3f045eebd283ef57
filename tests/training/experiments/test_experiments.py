"""Runs each experiment in its quick form, and tests what experiments compute from results."""

import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.training.experiments.conftest import quick_runner
from training.experiments import (
    activation_curves,
    active_learning_labels,
    averaging_thinned_networks,
)
from training.experiments.__main__ import main
from training.experiments.active_learning import ActiveCheck, ActiveResult
from training.experiments.experiment_record import Record
from training.experiments.settings import EXPERIMENT_MODULES, ExperimentName
from training.experiments.trial import Trial, run_trial
from training.experiments.trial_runner import TrialRunner

EXPERIMENTS: tuple[ExperimentName, ...] = get_args(ExperimentName)


@pytest.mark.training
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_experiment_writes_a_table_a_plot_and_an_entry(
    name: ExperimentName, tmp_path: Path
) -> None:
    runner = quick_runner(tmp_path, name)
    record: Record = import_module(f"training.experiments.{EXPERIMENT_MODULES[name]}").run(runner)
    assert record.name == name
    assert len(record.rows) >= 3
    assert all(len(row) == len(record.columns) for row in record.rows)
    assert record.figure is not None
    for axes in record.figure.axes:
        assert axes.get_title()
        assert axes.lines or axes.images
    record.save(runner.folder, "python -m x")
    assert "nan" not in (runner.folder / f"{name}.md").read_text()
    assert (runner.folder / f"{name}.svg").stat().st_size > 1000
    again: Record = import_module(f"training.experiments.{EXPERIMENT_MODULES[name]}").run(
        quick_runner(tmp_path, name)
    )
    assert again.rows == record.rows


def test_activation_curve_of_relu_is_exact() -> None:
    x, y, slope = (values.numpy() for values in activation_curves.activation_curve("relu"))
    np.testing.assert_array_equal(y, np.maximum(0, x))
    np.testing.assert_array_equal(slope, x > 0)


def test_finding_on_activations_names_those_that_pass_hardly_a_gradient(tmp_path: Path) -> None:
    record = activation_curves.run(quick_runner(tmp_path, "shapes"))
    for name, *_, share in record.rows:
        assert (f"{share} for {name}" in record.finding) == (share != "0%")


def test_draw_masks_of_both_kinds_have_the_same_distribution(tmp_path: Path) -> None:
    runner = quick_runner(tmp_path, "averaging")
    trial = Trial(data="digits", widths=(40,), dropout=0.5, learning_rate=0.1, epochs=1)
    _, network = run_trial(trial, runner.dataset("digits"))
    for kind in ("independent", "served"):
        drawn = [
            averaging_thinned_networks.draw_masks(network, kind, seed, 64).numpy()
            for seed in range(20)
        ]
        assert {0.0, 2.0} == set(np.unique(drawn))
        assert np.mean(drawn) == pytest.approx(1, abs=5 / np.sqrt(20 * 64 * 40))


def test_command_runs_one_experiment_and_records_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "docs"
    notes.mkdir()
    (notes / "experiments.md").write_text("# Notes\n\n## Old\n")
    assert main(["shapes", "--output", str(tmp_path / "out"), "--record", str(notes)]) == 0
    assert "sigmoid" in capsys.readouterr().out
    text = (notes / "experiments.md").read_text()
    assert "`python -m training.experiments shapes`: over x from -4 to 4" in text
    assert text.endswith("\n## Old\n")
    assert (notes / "plots" / "shapes.svg").is_file()


def test_one_of_two_data_sets_gives_an_entry_and_a_plot_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = tuple(ActiveCheck(labels=n, test_error=2.0 / n) for n in (10, 40, 90))
    result = ActiveResult(checks=checks, prior_strength=0.1)
    monkeypatch.setattr(active_learning_labels, "run_active_trial", lambda *_: result)
    monkeypatch.setattr(TrialRunner, "dataset", lambda _, name: name)
    (tmp_path / "experiments.md").write_text("# Notes\n\n## Old\n")
    options = ["--data", "fashion-mnist", "--seeds", "1", "--output", str(tmp_path / "out")]
    assert main(["active", *options, "--record", str(tmp_path)]) == 0
    text = (tmp_path / "experiments.md").read_text()
    assert "`python -m training.experiments active --data fashion-mnist --seeds 1`" in text
    assert "| mnist |" not in text
    assert text.count("| fashion-mnist |") == 7
    assert (tmp_path / "plots" / "active-fashion-mnist.svg").is_file()


def test_quick_form_leaves_the_entry_and_the_plot_of_the_full_one(tmp_path: Path) -> None:
    assert main(["shapes", "--quick", "--output", str(tmp_path)]) == 0
    written = {each.name for each in (tmp_path / "shapes").iterdir()}
    assert written == {"shapes-quick.md", "shapes-quick.svg"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required"),
        (["dying", "--data", "mnist"], "--data is for active and gan without --quick"),
        (["shape"], "input should be 'activations', 'initialisation', 'table'"),
        (["shapes", "--seeds", "0"], "--seeds: input should be greater than or equal to 1"),
        (["shapes", "--output", "/dev/null/x"], "Cannot write"),
    ],
)
def test_command_reports_a_wrong_option_in_one_sentence_with_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2
    assert sentence in errors
    assert errors.count("\n") == 1


def test_program_ends_with_the_exit_status_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, main.__module__)
    monkeypatch.setattr(sys, "argv", ["experiments", "shapes", "--output", "/dev/null/x"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("training.experiments", run_name="__main__")
    assert capsys.readouterr().err.startswith("Cannot write")


def test_process_reports_a_wrong_option_without_importing_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "training.experiments", "shape"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    *imports, sentence = done.stderr.splitlines()
    assert "input should be 'activations'" in sentence
    assert not [line for line in imports if line.endswith(" torch")]
