"""One training of one network for an experiment: what to do, and what came of it.

Plain gradient descent, no augmentation and no early stopping, so that only what an experiment
varies makes a difference. Two trials with one description on one machine give the same outcome.
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

from model.bundle.architecture import ActivationName, Architecture
from training.data import augmentation as augment
from training.data.batches import EVALUATION_BATCH, Batches, laid_out, pixel_statistics, pixels
from training.data.dataset import DataSet, Split
from training.experiments.networks import convolutions, dense
from training.fitting.diagnostics import (
    ActivationMonitor,
    GradientNorms,
    LayerHealth,
    diagnose,
    network_of,
)
from training.fitting.loop import silence_warnings
from training.fitting.module import ClassifierModule, epoch_seed
from training.network.classifier import Classifier

HOPELESS_SHARE = 3 / 8
HOPELESS_ERROR = 0.8
"""A trial with a target is given up where it has this error after this share of its epochs."""


class Trial(BaseModel):
    """All that decides a trial's outcome; the defaults are plain SGD on a dense ReLU network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    network: Literal["dense", "convolutions"] = "dense"
    widths: tuple[int, ...] = Field(description="units, or channels, of the hidden layers")
    activation: ActivationName = "relu"
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
    check_images: int = Field(10_000, description="training, and validation, images of a check")
    stop_at_train_error: float | None = None
    seed: int = 0
    killed_share: float = Field(0.0, description="share of hidden units that start dead")
    killing_bias: float = Field(0.0, description="the bias that they start with")
    shock_rate: float | None = Field(None, description="learning rate of the first epoch")
    tested: bool = Field(False, description="measure the test images once, at the end")


class Check(BaseModel):
    """A moment of a trial. Errors are shares of wrong answers, losses in nats, in evaluation."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    epoch: float
    train_loss: float
    train_error: float
    validation_loss: float
    validation_error: float
    dead: int
    """Hidden units that fire on no validation image."""


class Outcome(BaseModel):
    """What came of a trial."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    checks: tuple[Check, ...]
    """The first is before the first step."""
    diverged: bool
    test_error: float | None
    test_loss: float | None
    health: tuple[LayerHealth, ...]
    """On the validation images, at the end."""
    gradient_norms: dict[str, float]
    """By layer, mean over the steps of the first epoch."""

    @property
    def last(self) -> Check:
        """The last moment."""
        return self.checks[-1]


class Plain(ClassifierModule):
    """Gradient descent as a trial describes it."""

    def __init__(self, network: Classifier, trial: Trial, classes: int) -> None:
        super().__init__(network, classes, augment.build("none", 0), trial.max_norm)
        self.trial = trial

    def on_train_epoch_start(self) -> None:
        """Seed dropout for this epoch alone."""
        torch.manual_seed(epoch_seed(self.trial.seed, self.current_epoch))

    def configure_optimizers(self) -> Any:
        """The rate is the trial's, but for a shock, and falls to 0 where that is asked for."""
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
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Checks(Callback):
    """Measures a network a fixed number of times an epoch, and stops it where it need not go on."""

    def __init__(self, trial: Trial, data: DataSet, steps: int) -> None:
        self.checks: list[Check] = []
        self.norms = GradientNorms()
        self._trial = trial
        self._train, self._validation = (
            part.take(np.arange(min(len(part), trial.check_images)))
            for part in (data.train, data.validation)
        )
        self._steps = steps  # in an epoch
        self._interval = max(1, steps // trial.checks_per_epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the first step."""
        self._check(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the first epoch's gradients."""
        if trainer.global_step < self._steps:
            self.norms.add(network_of(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure where it is time; stop at the target, or where the loss is no number."""
        if trainer.global_step % self._interval == 0:
            check = self._check(trainer, pl_module)
            target = self._trial.stop_at_train_error
            late = check.epoch >= HOPELESS_SHARE * self._trial.epochs
            ended = target is not None and (
                check.train_error <= target or (late and check.train_error > HOPELESS_ERROR)
            )
            trainer.should_stop = ended or not math.isfinite(check.train_loss)

    def _check(self, trainer: Trainer, module: LightningModule) -> Check:
        network = network_of(module)
        train_loss, train_error = measure(network, self._train)
        with ActivationMonitor(network) as watch:
            validation_loss, validation_error = measure(network, self._validation)
        self.checks.append(
            Check(
                epoch=trainer.global_step / self._steps,
                train_loss=train_loss,
                train_error=train_error,
                validation_loss=validation_loss,
                validation_error=validation_error,
                dead=sum(layer.dead for layer in watch.health()),
            )
        )
        return self.checks[-1]


def run(trial: Trial, data: DataSet) -> tuple[Outcome, Classifier]:
    """Train as `trial` says on `data`, and return the outcome and the network, in evaluation."""
    silence_warnings()
    torch.manual_seed(trial.seed)
    network = _build(trial, data)
    _kill(network, trial)
    batches = Batches(data.train, trial.batch_size, lambda count: _order(trainer, trial, count))
    checks = Checks(trial, data, len(batches))
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
    trainer.fit(Plain(network, trial, len(data.class_names)), batches)
    network.eval()
    test_loss, test_error = measure(network, data.test) if trial.tested else (None, None)
    return Outcome(
        checks=tuple(checks.checks),
        diverged=not math.isfinite(checks.checks[-1].train_loss),
        test_error=test_error,
        test_loss=test_loss,
        health=diagnose(network, pixels(data.validation)),
        gradient_norms=checks.norms.means(),
    ), network


def measure(network: nn.Module, part: Split) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the share of wrong answers, in evaluation mode."""
    was_training = network.training
    network.eval()
    loss = wrong = 0.0
    with torch.no_grad():
        for images, labels in Batches(part, EVALUATION_BATCH):
            logits = network(laid_out(images.float() / 255))
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            wrong += int((logits.argmax(dim=1) != labels).sum())
    network.train(was_training)
    return loss / len(part), wrong / len(part)


def _order(trainer: Trainer, trial: Trial, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(epoch_seed(trial.seed, trainer.current_epoch))
    return torch.randperm(count, generator=generator)


def _kill(network: Classifier, trial: Trial) -> None:
    """Give a drawn share of each hidden layer's units the killing bias."""
    generator = torch.Generator().manual_seed(trial.seed)
    for hidden in network.hidden_layers():
        count = round(trial.killed_share * hidden.units)
        drawn = torch.randperm(hidden.units, generator=generator)[:count]
        if hidden.bias is not None:
            hidden.bias.data[drawn] = trial.killing_bias


def _build(trial: Trial, data: DataSet) -> Classifier:
    architecture = Architecture(
        activation=trial.activation,
        negative_slope=trial.negative_slope,
        dropout=trial.dropout,
        classes=len(data.class_names),
        input=data.input,
    )
    statistics = pixel_statistics(data.train)
    if trial.network == "dense":
        return dense(architecture, trial.widths, trial.input_dropout, statistics)
    network: Classifier = convolutions(architecture, trial.widths, statistics)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
