from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from model.commandline import load as load_settings
from model.network import Classifier
from training import data as data_sets
from training.config import TrainingConfig
from training.data import DataSet, Part
from training.fit import LAST_CHECKPOINT, Batches, History, fit, pixel_statistics


def config(epochs: int, *arguments: str) -> TrainingConfig:
    return load_settings(TrainingConfig, ["--epochs", str(epochs), *arguments])


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return data_sets.load(config(1))


def same(one: Classifier, other: Classifier) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_two_runs_give_identical_weights_and_another_seed_others(
    tmp_path: Path, digits: DataSet
) -> None:
    first, history = fit(config(2), digits, tmp_path / "1", resume=False)
    second, again = fit(config(2), digits, tmp_path / "2", resume=False)
    assert same(first, second)
    assert history == again
    assert len(history) == 2
    other, _ = fit(config(2, "--seed", "1"), digits, tmp_path / "3", resume=False)
    assert not same(first, other)


class _KilledError(Exception):
    """Stands for a kill: nothing of the loop's own shutdown runs but what any exception gets."""


def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(
    tmp_path: Path, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = fit(config(4), digits, tmp_path / "whole", resume=False)

    def killed(self: History, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", killed)
        with pytest.raises(_KilledError):
            fit(config(4), digits, tmp_path / "run", resume=False)
    resumed, figures = fit(config(4), digits, tmp_path / "run", resume=True)
    assert same(whole, resumed)
    assert figures == history


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
    _, history = fit(config(3), digits, tmp_path, resume=False)
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert history[-1]["validation_accuracy"] > 0.7
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").stat().st_size > 0
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents*"))


def test_training_stops_early_and_keeps_the_best(tmp_path: Path, digits: DataSet) -> None:
    settings = config(60, "--patience", "1", "--learning-rate", "3")
    _, history = fit(settings, digits, tmp_path, resume=False)
    assert len(history) < 60


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
