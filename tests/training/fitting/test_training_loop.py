from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from model.cli_and_env_settings import load as load_settings
from model.errors import RunError
from tests.training.conftest import same_weights, weight_norms
from training.config import TrainingConfig
from training.data.batches import image_batches
from training.data.dataset import Dataset, load_dataset
from training.fitting.checkpoints import LAST_CHECKPOINT
from training.fitting.training_loop import History, StopEarly, TrainResult, fit
from training.fitting.unit_diagnostics import diagnose


def config(epochs: int, *arguments: str) -> TrainingConfig:
    return load_settings(TrainingConfig, ["--epochs", str(epochs), *arguments])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(config(1))


def diagnostics_of(fitted: TrainResult) -> tuple[object, ...]:
    """Return what a run records: its losses, and how the hidden layers fired."""
    health = (fitted.before, fitted.after, fitted.renormalised)
    return fitted.history, fitted.epochs, *health


def test_fit_is_deterministic_in_its_seed(tmp_path: Path, digits: Dataset) -> None:
    first = fit(config(2), digits, tmp_path / "1", resume=False)
    second = fit(config(2), digits, tmp_path / "2", resume=False)
    assert same_weights(first.network, second.network)
    assert diagnostics_of(first) == diagnostics_of(second)
    assert len(first.history) == len(first.epochs) == 2
    other = fit(config(2, "--seed", "101"), digits, tmp_path / "3", resume=False)
    assert not same_weights(first.network, other.network)
    for own, others in zip(diagnostics_of(first), diagnostics_of(other), strict=True):
        assert own != others


class _KilledError(Exception):
    """Stands for a kill: the trainer's shutdown runs only what it runs for any exception."""


def test_fit_resumed_after_a_kill_ends_with_the_same_weights(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config(4), digits, tmp_path / "whole", resume=False)

    def raise_killed(self: History, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", raise_killed)
        with pytest.raises(_KilledError):
            fit(config(4), digits, tmp_path / "run", resume=False)
    resumed = fit(config(4), digits, tmp_path / "run", resume=True)
    assert same_weights(whole.network, resumed.network)
    assert diagnostics_of(whole) == diagnostics_of(resumed)
    assert len(resumed.epochs) == 4


def test_fit_goes_on_from_the_best_checkpoint_if_the_last_is_cut(
    tmp_path: Path, digits: Dataset
) -> None:
    whole = fit(config(2), digits, tmp_path, resume=False)
    file = tmp_path / LAST_CHECKPOINT
    file.write_bytes(file.read_bytes()[:1000])
    resumed = fit(config(2), digits, tmp_path, resume=True)
    assert same_weights(whole.network, resumed.network)
    assert diagnostics_of(whole) == diagnostics_of(resumed)


def test_fit_raises_keyboard_interrupt_and_keeps_the_last_checkpoint(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_interrupt(self: History, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(History, "on_train_epoch_start", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(config(4), digits, tmp_path, resume=False)
    assert (tmp_path / LAST_CHECKPOINT).is_file()


def test_fit_learns_and_writes_logs(tmp_path: Path, digits: Dataset) -> None:
    history = fit(config(3), digits, tmp_path, resume=False).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert history[-1]["validation_accuracy"] > 0.7
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").stat().st_size > 0
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents*"))


def test_fit_stops_early_without_improvement(tmp_path: Path, digits: Dataset) -> None:
    settings = config(60, "--patience", "1", "--learning-rate", "3")
    fitted = fit(settings, digits, tmp_path, resume=False)
    assert len(fitted.history) == len(fitted.epochs) < 60


def test_fit_diagnoses_the_weights_that_it_returns(tmp_path: Path, digits: Dataset) -> None:
    fitted = fit(config(1, "--preset", "mlp"), digits, tmp_path, resume=False)
    assert fitted.after == diagnose(fitted.network, image_batches(digits.validation))
    assert fitted.before != fitted.after
    assert set(fitted.epochs[0].gradient_norms) == {"dense 1", "output"}


def test_fit_measures_units_with_the_statistics_of_a_training_step(
    tmp_path: Path, digits: Dataset
) -> None:
    """In two steps the running means of batch normalisation hardly move."""
    fitted = fit(config(1, "--batch-size", "700"), digits, tmp_path, resume=False)
    assert fitted.after[-1].dead > 20
    assert fitted.before[-1].dead == fitted.renormalised[-1].dead == 0


def test_fit_says_that_the_training_diverged_and_does_not_go_on_with_it(
    tmp_path: Path, digits: Dataset
) -> None:
    options = ("--preset", "mlp", "--learning-rate", "3", "--weight-decay", "10")
    settings = config(3, *options)
    expected = (
        r"The training diverged: from epoch 1 on the validation loss is (nan|inf); train again, "
        r"without --resume and with --learning-rate 1\."
    )
    with pytest.raises(RunError, match=expected):
        fit(settings, digits, tmp_path, resume=False)
    before = (tmp_path / LAST_CHECKPOINT).read_bytes()
    with pytest.raises(RunError, match=expected):
        fit(settings, digits, tmp_path, resume=True)
    assert (tmp_path / LAST_CHECKPOINT).read_bytes() == before


class _SpoiltWeights(Callback):
    """Makes the weights no numbers before the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            for weights in pl_module.parameters():
                weights.data.fill_(torch.nan)


def test_fit_returns_the_weights_of_an_epoch_before_the_training_diverged(
    tmp_path: Path, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = fit(config(3, "--preset", "mlp"), digits, tmp_path, False, [_SpoiltWeights()])
    assert "from epoch 2 on the validation loss is nan, so the weights are those" in caplog.text
    assert all(weights.isfinite().all() for weights in fitted.network.parameters())


def test_fit_averages_the_weights_that_validation_and_diagnostics_see(
    tmp_path: Path, digits: Dataset
) -> None:
    averaged = fit(config(2), digits, tmp_path / "averaged", resume=False)
    last = fit(config(2, "--weight-averaging", "0"), digits, tmp_path / "last", resume=False)
    losses = [epoch["validation_loss"] for epoch in averaged.history]
    assert losses[-1] == min(losses)
    assert averaged.epochs[-1].layers == averaged.after
    assert averaged.epochs[-1].gradient_norms == last.epochs[-1].gradient_norms
    assert averaged.history[-1]["train_loss"] == last.history[-1]["train_loss"]
    assert losses[-1] != last.history[-1]["validation_loss"]
    assert not same_weights(averaged.network, last.network)


def test_fit_with_max_norm_limits_only_hidden_units(tmp_path: Path, digits: Dataset) -> None:
    max_norm = 0.6
    free = fit(config(1), digits, tmp_path / "free", resume=False).network
    options = ("--max-norm", str(max_norm))
    limited = fit(config(1, *options), digits, tmp_path / "limited", resume=False).network
    for loose, tight in zip(free.hidden_layers(), limited.hidden_layers(), strict=True):
        assert weight_norms(loose.layer).max() > max_norm
        assert weight_norms(tight.layer).max() <= max_norm * (1 + 1e-6)
    assert weight_norms(limited.head.layers[-1]).max() > max_norm


@pytest.mark.parametrize(("bad_epochs", "stops"), [(2, True), (1, False)])
def test_resumed_training_that_had_stopped_early_trains_no_further_epoch(
    bad_epochs: int, stops: bool
) -> None:
    stopped = StopEarly("validation_loss", patience=2)
    stopped.wait_count = bad_epochs
    resumed = StopEarly("validation_loss", patience=2)
    resumed.load_state_dict(stopped.state_dict())
    trainer = Trainer(logger=False, enable_checkpointing=False)
    resumed.on_train_start(trainer, LightningModule())
    assert trainer.should_stop is stops
