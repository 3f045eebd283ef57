"""Runs a trial: one training of one network for an experiment, from its description to its result.

Uses plain gradient descent, no augmentation and no early stopping, so that only what an experiment
varies makes a difference. Two equal trials on the same machine give the same result.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from model.bundle.architecture_description import ActivationName, Architecture
from training.data.augmentation import build_augmentation
from training.data.batches import (
    EVALUATION_BATCH_SIZE,
    Batches,
    image_batches,
    pixel_mean_and_std,
    to_channels_last,
)
from training.data.dataset import Dataset, Split
from training.experiments.paper_networks import (
    build_convolutional,
    build_dense,
    initialise_as_krizhevsky,
    replace_activations,
)
from training.fitting.learning_rate_schedule import update_every_step
from training.fitting.lightning_module import ClassifierModule, epoch_seed
from training.fitting.training_loop import silence_warnings
from training.fitting.unit_diagnostics import (
    ActivationMonitor,
    GradientNorms,
    LayerHealth,
    diagnose,
    network_of,
)
from training.network.classifier import Classifier

GIVE_UP_SHARE = 3 / 8
GIVE_UP_ERROR = 0.8
"""A trial with a target stops if, after that share of its epochs, its training error is higher."""


TrialActivation = ActivationName | Literal["softsign"]
"""No bundle has softsign (Turian et al. 2009); it is compared with the others in experiments."""


class Trial(BaseModel):
    """All that determines a trial's result; the defaults are plain SGD on a dense ReLU network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    network: Literal["dense", "convolutions"] = "dense"
    widths: tuple[int, ...] = Field(description="units, or channels, of the hidden layers")
    activation: TrialActivation = "relu"
    initialisation: Literal["scaled", "krizhevsky"] = Field(
        "scaled",
        description="scaled: He et al. 2015 for ReLU and its kin, Glorot & Bengio 2010 for bounded "
        "activations. krizhevsky: as `initialise_as_krizhevsky`",
    )
    negative_slope: float = 0.01
    input_dropout: float = 0.0
    dropout: float = 0.0
    max_norm: float | None = None
    learning_rate: float = 0.01
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.0, description="of sgd; adam has its own")
    schedule: Literal["constant", "linear"] = "constant"
    batch_size: int = 128
    epochs: float
    checks_per_epoch: int = 1
    check_images: int = Field(
        10_000, description="most training, and most validation, images of a check"
    )
    stop_at_train_error: float | None = None
    seed: int = 0
    killed_share: float = Field(0.0, description="share of hidden units that start dead")
    killing_bias: float = Field(0.0, description="the bias that they start with")
    shock_rate: float | None = Field(None, description="learning rate of the first epoch")
    tested: bool = Field(False, description="measure the test images once, at the end")
    trains_on_validation: bool = Field(
        False, description="train on the validation images too, once all choices are made"
    )


class Check(BaseModel):
    """One measurement during a trial, in evaluation mode.

    Errors are shares of wrong predictions, 0..1; losses are mean cross-entropies in nats.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    epoch: float
    train_loss: float
    train_error: float
    validation_loss: float
    validation_error: float
    dead: int
    """Hidden units that fire on no validation image."""


class TrialResult(BaseModel):
    """The measurements of a trial."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    checks: tuple[Check, ...]
    """In the order of time; the first one is before the first step."""
    diverged: bool
    test_error: float | None
    test_loss: float | None
    health: tuple[LayerHealth, ...]
    """Of the hidden layers on the validation images, at the end."""
    gradient_norms: dict[str, float]
    """L2 norms by layer, averaged over the steps of the first epoch."""

    @property
    def last(self) -> Check:
        """The last check."""
        return self.checks[-1]


class TrialModule(ClassifierModule):
    """Trains a network with the optimizer and the schedule of a trial."""

    def __init__(self, network: Classifier, trial: Trial, classes: int) -> None:
        super().__init__(network, classes, build_augmentation("none", 0), trial.max_norm)
        self.trial = trial

    def on_train_epoch_start(self) -> None:
        """Seed the dropout of this epoch."""
        torch.manual_seed(epoch_seed(self.trial.seed, self.current_epoch))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule: constant or linear, after an optional shock."""
        trial = self.trial
        weights = self.network.parameters()
        optimizer: Optimizer
        if trial.optimizer == "adam":
            optimizer = torch.optim.Adam(weights, lr=trial.learning_rate)
        else:
            optimizer = torch.optim.SGD(weights, trial.learning_rate, momentum=trial.momentum)
        steps = int(self.trainer.estimated_stepping_batches)
        epoch_steps = steps / trial.epochs

        def factor(step: int) -> float:
            if trial.shock_rate is not None and step < epoch_steps:
                return trial.shock_rate / trial.learning_rate
            return 1 - step / (steps + 1) if trial.schedule == "linear" else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return update_every_step(optimizer, schedule)


class CheckCallback(Callback):
    """Measures the network several times per epoch, and stops a trial that has reached its end."""

    def __init__(self, trial: Trial, data: Dataset, steps: int) -> None:
        self.checks: list[Check] = []
        self.norms = GradientNorms()
        self._trial = trial
        self._train, self._validation = (
            split.take(np.arange(min(len(split), trial.check_images)))
            for split in (data.train, data.validation)
        )
        self._steps = steps  # per epoch
        self._interval = max(1, steps // trial.checks_per_epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the first step."""
        self._check(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradients of a step of the first epoch."""
        if trainer.global_step < self._steps:
            self.norms.add(network_of(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure at the interval; stop at the target, far from it, or if the loss diverged."""
        if trainer.global_step % self._interval == 0:
            check = self._check(trainer, pl_module)
            target = self._trial.stop_at_train_error
            is_late = check.epoch >= GIVE_UP_SHARE * self._trial.epochs
            ended = target is not None and (
                check.train_error <= target or (is_late and check.train_error > GIVE_UP_ERROR)
            )
            trainer.should_stop = ended or not math.isfinite(check.train_loss)

    def _check(self, trainer: Trainer, module: LightningModule) -> Check:
        network = network_of(module)
        train_loss, train_error = loss_and_error(network, self._train)
        with ActivationMonitor(network) as monitor:
            validation_loss, validation_error = loss_and_error(network, self._validation)
        self.checks.append(
            Check(
                epoch=trainer.global_step / self._steps,
                train_loss=train_loss,
                train_error=train_error,
                validation_loss=validation_loss,
                validation_error=validation_error,
                dead=sum(layer.dead for layer in monitor.health()),
            )
        )
        return self.checks[-1]


def run_trial(trial: Trial, data: Dataset) -> tuple[TrialResult, Classifier]:
    """Train as `trial` describes; return the result and the network in evaluation mode."""
    silence_warnings()
    torch.manual_seed(trial.seed)
    network = _build_network(trial, data)
    _set_killing_biases(network, trial)
    batches = Batches(
        _training_images(trial, data),
        trial.batch_size,
        lambda count: _epoch_order(trainer, trial, count),
    )
    checks = CheckCallback(trial, data, len(batches))
    trainer = Trainer(
        max_steps=math.ceil(trial.epochs * len(batches)),
        accelerator="cpu",
        deterministic=True,
        callbacks=[checks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TrialModule(network, trial, len(data.class_names)), batches)
    network.eval()
    test_loss, test_error = loss_and_error(network, data.test) if trial.tested else (None, None)
    return TrialResult(
        checks=tuple(checks.checks),
        diverged=not math.isfinite(checks.checks[-1].train_loss),
        test_error=test_error,
        test_loss=test_loss,
        health=diagnose(network, image_batches(data.validation)),
        gradient_norms=checks.norms.means(),
    ), network


def loss_and_error(network: nn.Module, split: Split) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the share of wrong predictions (0..1).

    Runs in evaluation mode and restores the mode of `network`.
    """
    was_training = network.training
    network.eval()
    loss = wrong = 0.0
    with torch.no_grad():
        for images, labels in Batches(split, EVALUATION_BATCH_SIZE):
            logits = network(to_channels_last(images.float() / 255))
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            wrong += int((logits.argmax(dim=1) != labels).sum())
    network.train(was_training)
    return loss / len(split), wrong / len(split)


def _training_images(trial: Trial, data: Dataset) -> Split:
    if not trial.trains_on_validation:
        return data.train
    return Split(
        np.concatenate([data.train.images, data.validation.images]),
        np.concatenate([data.train.labels, data.validation.labels]),
    )


def _epoch_order(trainer: Trainer, trial: Trial, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(epoch_seed(trial.seed, trainer.current_epoch))
    return torch.randperm(count, generator=generator)


def _set_killing_biases(network: Classifier, trial: Trial) -> None:
    """Set the killing bias of a random share of each hidden layer's units."""
    generator = torch.Generator().manual_seed(trial.seed)
    for hidden in network.hidden_layers():
        count = round(trial.killed_share * hidden.units)
        drawn = torch.randperm(hidden.units, generator=generator)[:count]
        if hidden.bias is not None:
            hidden.bias.data[drawn] = trial.killing_bias


def _build_network(trial: Trial, data: Dataset) -> Classifier:
    is_softsign = trial.activation == "softsign"
    architecture = Architecture(
        activation="tanh" if is_softsign else trial.activation,
        negative_slope=trial.negative_slope,
        dropout=trial.dropout,
        classes=len(data.class_names),
        input=data.input,
    )
    statistics = pixel_mean_and_std(data.train)
    if trial.network == "dense":
        network = build_dense(architecture, trial.widths, trial.input_dropout, statistics)
    else:
        network = build_convolutional(architecture, trial.widths, statistics)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if is_softsign:
        replace_activations(network, nn.Tanh, nn.Softsign)
    if trial.initialisation == "krizhevsky":
        initialise_as_krizhevsky(network)
    return network
