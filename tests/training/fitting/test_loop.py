from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer

from model.settings import load as load_settings
from tests.training.conftest import norms, same
from training.config import TrainingConfig
from training.data import dataset as data_sets
from training.data.batches import pixels
from training.data.dataset import DataSet
from training.fitting.diagnostics import diagnose
from training.fitting.loop import LAST_CHECKPOINT, History, TrainResult, fit


def config(epochs: int, *arguments: str) -> TrainingConfig:
    return load_settings(TrainingConfig, ["--epochs", str(epochs), *arguments])


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return data_sets.load(config(1))


def seen(fitted: TrainResult) -> tuple[object, ...]:
    """All that was noted on the way: losses, and how the hidden layers fired."""
    return fitted.history, fitted.before, fitted.epochs, fitted.after


def test_two_runs_give_identical_weights_and_another_seed_others(
    tmp_path: Path, digits: DataSet
) -> None:
    first = fit(config(2), digits, tmp_path / "1", resume=False)
    second = fit(config(2), digits, tmp_path / "2", resume=False)
    assert same(first.network, second.network)
    assert seen(first) == seen(second)
    assert len(first.history) == len(first.epochs) == 2
    other = fit(config(2, "--seed", "101"), digits, tmp_path / "3", resume=False)
    assert not same(first.network, other.network)
    for mine, theirs in zip(seen(first), seen(other), strict=True):
        assert mine != theirs


class _KilledError(Exception):
    """Stands for a kill: nothing of the loop's own shutdown runs but what any exception gets."""


def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(
    tmp_path: Path, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config(4), digits, tmp_path / "whole", resume=False)

    def killed(self: History, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", killed)
        with pytest.raises(_KilledError):
            fit(config(4), digits, tmp_path / "run", resume=False)
    resumed = fit(config(4), digits, tmp_path / "run", resume=True)
    assert same(whole.network, resumed.network)
    assert seen(whole) == seen(resumed)
    assert len(resumed.epochs) == 4


def test_ctrl_c_comes_through_and_leaves_the_last_checkpoint(
    tmp_path: Path, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: History, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(History, "on_train_epoch_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(config(4), digits, tmp_path, resume=False)
    assert (tmp_path / LAST_CHECKPOINT).is_file()


def test_training_learns_and_writes_its_logs(tmp_path: Path, digits: DataSet) -> None:
    history = fit(config(3), digits, tmp_path, resume=False).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert history[-1]["validation_accuracy"] > 0.7
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").stat().st_size > 0
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents*"))


def test_training_stops_early_and_keeps_the_best(tmp_path: Path, digits: DataSet) -> None:
    settings = config(60, "--patience", "1", "--learning-rate", "3")
    fitted = fit(settings, digits, tmp_path, resume=False)
    assert len(fitted.history) == len(fitted.epochs) < 60


def test_the_weights_that_are_kept_are_the_ones_that_were_diagnosed(
    tmp_path: Path, digits: DataSet
) -> None:
    fitted = fit(config(1, "--preset", "mlp"), digits, tmp_path, resume=False)
    assert fitted.after == diagnose(fitted.network, pixels(digits.validation))
    assert fitted.before != fitted.after
    assert set(fitted.epochs[0].gradient_norms) == {"dense 1", "output"}


def test_max_norm_holds_the_hidden_units_alone(tmp_path: Path, digits: DataSet) -> None:
    longest = 0.6
    free = fit(config(1), digits, tmp_path / "free", resume=False).network
    options = ("--max-norm", str(longest))
    held = fit(config(1, *options), digits, tmp_path / "held", resume=False).network
    for loose, tight in zip(free.hidden_layers(), held.hidden_layers(), strict=True):
        assert norms(loose.layer).max() > longest
        assert norms(tight.layer).max() <= longest * (1 + 1e-6)
    assert norms(held.head.layers[-1]).max() > longest
