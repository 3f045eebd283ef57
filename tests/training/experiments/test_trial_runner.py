import logging
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from tests.training.experiments.conftest import quick_runner
from training.experiments import trial_runner
from training.experiments.trial import Trial, TrialResult
from training.experiments.trial_runner import SWEEP_SEED, TrialRunner, describe_sweep


class Options(BaseModel):
    steps: int = 5


class OptionsOfLater(BaseModel):
    steps: int = 6


def test_runner_reads_cached_results(
    runner: TrialRunner,
    small: Trial,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    first = runner.run_all([small])
    assert "1 of 1 · digits, relu · rate 0.1, seed 0" in caplog.text

    def fail(*_: object) -> None:
        raise AssertionError("the trial has a cached result")

    monkeypatch.setattr(trial_runner, "run_trial", fail)
    assert runner.run_all([small]) == first


def test_runner_caches_nothing_of_an_interrupted_trial(
    runner: TrialRunner, small: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trial_runner, "run_trial", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.run_all([small])
    assert not list(runner.folder.iterdir())
    assert runner.run_all([small])[0].last.epoch == 2


def test_best_learning_rate_ignores_diverged_trials(runner: TrialRunner, small: Trial) -> None:
    costs: list[float] = []

    def cost(result: TrialResult) -> float:
        costs.append(result.last.validation_loss)
        return result.last.validation_loss

    rate = runner.best_learning_rate(small.model_copy(update={"epochs": 1}), (1e-5, 0.1, 1e6), cost)
    assert rate == 0.1
    assert len(costs) == 2  # the diverged trial has no cost


def test_sweep_uses_neither_test_images_nor_the_arms_seeds(
    runner: TrialRunner, small: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[Trial] = []

    def run_all(trials: list[Trial]) -> list[TrialResult]:
        requested.extend(trials)
        return TrialRunner.run_all(runner, trials)

    monkeypatch.setattr(runner, "run_all", run_all)
    runner.best_learning_rate(small.model_copy(update={"epochs": 1}), (0.05, 0.1), lambda _: 0.0)
    assert [trial.tested for trial in requested] == [False, False]
    assert {trial.seed for trial in requested} == {SWEEP_SEED}
    requested.clear()
    (repeat,) = runner.repeat_over_seeds(small)
    assert requested[0].tested
    assert SWEEP_SEED not in runner.seeds
    assert repeat.test_error is not None


def test_runner_caches_each_trial_in_its_own_file(
    runner: TrialRunner, small: Trial, tmp_path: Path
) -> None:
    runner.run_all([small, small.model_copy(update={"seed": 1})])
    assert len(list((tmp_path / "table").glob("*.json"))) == 2


def test_runner_caches_other_defaults_and_other_versions_as_other_results(
    runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(key: BaseModel, made: int) -> int:
        return runner.cached(key, Options, lambda: Options(steps=made)).steps

    assert cached(Options(), 1) == cached(Options(), 2) == 1
    assert cached(OptionsOfLater(), 3) == 3
    monkeypatch.setattr(trial_runner, "RESULTS_VERSION", trial_runner.RESULTS_VERSION + 1)
    assert cached(Options(), 4) == 4


@pytest.mark.parametrize("content", [b"", b'{"steps": ', b'{"steps": "none"}'])
def test_runner_makes_a_damaged_result_again(
    runner: TrialRunner, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    runner.cached(Options(), Options, Options)
    (file,) = runner.folder.iterdir()
    file.write_bytes(content)
    assert runner.cached(Options(), Options, lambda: Options(steps=7)).steps == 7
    assert f"{file} is damaged; it is made again." in caplog.text
    assert runner.cached(Options(), Options, Options).steps == 7
    assert list(runner.folder.iterdir()) == [file]


def test_sweep_of_one_rate_is_no_choice() -> None:
    assert describe_sweep((0.03,), 1) == "The rate is 0.03."
    assert describe_sweep((0.1, 0.03), 1) == (
        "The rate of each arm is the one of 0.03, 0.1 with the least validation loss after 1 epoch."
    )


def test_runner_loads_the_same_images_whatever_the_options_of_trainings_are(
    runner: TrialRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = runner.dataset("digits")
    monkeypatch.setenv("DROPSERVE_TRAINING_SPLIT_SEED", "7")
    monkeypatch.setenv("DROPSERVE_TRAINING_IMAGE_SIZE", "16")
    after = quick_runner(tmp_path / "later", "table").dataset("digits")
    np.testing.assert_array_equal(after.train.images, before.train.images)
