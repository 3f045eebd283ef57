import logging
from pathlib import Path

import pytest

from training.experiments import trial as trials
from training.experiments.trial import Outcome, Trial
from training.experiments.trial_runner import SWEEP_SEED, Lab


def test_what_was_done_is_not_done_again(
    lab: Lab, small: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = lab.run([small])
    assert "1 of 1 · digits, relu · rate 0.1, seed 0" in caplog.text

    def never(*_: object) -> None:
        raise AssertionError("it was done already")

    monkeypatch.setattr(trials, "run", never)
    assert lab.run([small]) == first


def test_a_trial_that_was_cut_short_leaves_nothing(
    lab: Lab, small: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trials, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.run([small])
    assert not list(lab.folder.iterdir())
    assert lab.run([small])[0].last.epoch == 2


def test_a_sweep_takes_the_cheapest_rate_that_converged(lab: Lab, small: Trial) -> None:
    seen: list[float] = []

    def cost(outcome: Outcome) -> float:
        seen.append(outcome.last.validation_loss)
        return outcome.last.validation_loss

    rate = lab.best_rate(small.model_copy(update={"epochs": 1}), (1e-5, 0.1, 1e6), cost)
    assert rate == 0.1
    assert len(seen) == 2  # the runaway has no cost to compare


def test_a_sweep_sees_neither_test_images_nor_the_arms_seeds(
    lab: Lab, small: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Trial] = []

    def run(todo: list[Trial]) -> list[Outcome]:
        asked.extend(todo)
        return Lab.run(lab, todo)

    monkeypatch.setattr(lab, "run", run)
    lab.best_rate(small.model_copy(update={"epochs": 1}), (0.05, 0.1), lambda _: 0.0)
    assert [trial.tested for trial in asked] == [False, False]
    assert {trial.seed for trial in asked} == {SWEEP_SEED}
    asked.clear()
    (repeat,) = lab.repeat(small)
    assert asked[0].tested
    assert SWEEP_SEED not in lab.seeds
    assert repeat.test_error is not None


def test_outcomes_have_names_of_their_own(lab: Lab, small: Trial, tmp_path: Path) -> None:
    lab.run([small, small.model_copy(update={"seed": 1})])
    assert len(list((tmp_path / "table").glob("*.json"))) == 2
