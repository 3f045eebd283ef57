from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional

from model.architecture import Architecture
from model.commandline import load as load_settings
from model.network import Classifier, Head
from model.preprocessing import InputSpec
from training import data as data_sets
from training.config import TrainingConfig
from training.data import DataSet, Part
from training.diagnosis import diagnose
from training.fit import (
    LAST_CHECKPOINT,
    Batches,
    Fitted,
    History,
    constrain,
    fit,
    pixel_statistics,
    pixels,
)


def config(epochs: int, *arguments: str) -> TrainingConfig:
    return load_settings(TrainingConfig, ["--epochs", str(epochs), *arguments])


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return data_sets.load(config(1))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def seen(fitted: Fitted) -> tuple[object, ...]:
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
    other = fit(config(2, "--seed", "1"), digits, tmp_path / "3", resume=False)
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


def norms(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    lengths: torch.Tensor = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    return lengths.double()


def test_max_norm_holds_the_hidden_units_alone(tmp_path: Path, digits: DataSet) -> None:
    longest = 0.6
    free = fit(config(1), digits, tmp_path / "free", resume=False).network
    options = ("--max-norm", str(longest))
    held = fit(config(1, *options), digits, tmp_path / "held", resume=False).network
    for loose, tight in zip(free.hidden_layers(), held.hidden_layers(), strict=True):
        assert norms(loose.layer).max() > longest
        assert norms(tight.layer).max() <= longest * (1 + 1e-6)
    assert norms(held.head.layers[-1]).max() > longest


@given(longest=st.floats(0.1, 5), seed=st.integers(0, 1_000))
def test_constraining_shortens_long_weight_vectors_and_leaves_short_ones_as_they_are(
    longest: float, seed: int
) -> None:
    torch.manual_seed(seed)
    architecture = Architecture(
        classes=2, input=InputSpec(channels=1, height=4, width=4, resize="pad")
    )
    trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU())
    network = Classifier(trunk, Head([6, 2], architecture, dropouts=1))
    before = deepcopy(network)
    constrain(network, longest)
    for old, new in zip(before.hidden_layers(), network.hidden_layers(), strict=True):
        short = norms(old.layer) <= longest * (1 - 1e-6)
        assert torch.equal(new.layer.weight[short], old.layer.weight[short])
        cut = norms(old.layer) > longest
        torch.testing.assert_close(
            norms(new.layer)[cut], torch.full([int(cut.sum())], longest).double(), rtol=1e-5, atol=0
        )
        cosines = functional.cosine_similarity(
            new.layer.weight.flatten(1), old.layer.weight.flatten(1)
        )
        torch.testing.assert_close(cosines, torch.ones_like(cosines))
        assert old.layer.bias is not None
        assert new.layer.bias is not None
        assert torch.equal(new.layer.bias, old.layer.bias)
    assert same(before.head, network.head)


def part(count: int) -> Part:
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Part(images, np.arange(count))


def test_batches_give_each_image_once_in_the_named_order() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    batches = Batches(part(5), 2, lambda _count: order)
    assert len(batches) == 2
    assert [labels.tolist() for _, labels in batches] == [[3, 1], [4, 0]]
    assert [images.flatten().tolist() for images, _ in Batches(part(5), 2)] == [[0, 1], [2, 3], [4]]
    assert len(Batches(part(5), 2)) == 3
    assert len(Batches(part(3), 128, torch.arange)) == 1


def test_pixel_statistics_are_the_pixels_mean_and_deviation() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 7), dtype=np.uint8)
    means, deviations = pixel_statistics(Part(images, np.zeros(9, np.int64)))
    np.testing.assert_allclose(means, (images / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(deviations, (images / 255).std(axis=(0, 2, 3)))
    black = Part(np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64))
    assert pixel_statistics(black)[1][0] > 0
