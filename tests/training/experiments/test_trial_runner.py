import logging
from pathlib import Path

import pytest

from training.experiments import trial_runner
from training.experiments.trial import Trial, TrialResult
from training.experiments.trial_runner import SWEEP_SEED, TrialRunner


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
