"""Runs a training with Lightning's trainer. Knows no bundle and no report.

Two runs with the same configuration on the same machine give identical weights, and so does a run
that was killed between two epochs and resumed: the order of images, the augmentation and the
dropout of each epoch are drawn from (seed, epoch). Several processes take the steps that one would
take, up to the rounding of sums: each has a part of every batch.
"""

import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from model.bundle.architecture_description import Architecture
from model.container_resources import available_processors
from model.errors import RunError
from training.config import EFFICIENTNET_LITE0, ONNX_BACKBONE, TrainingConfig
from training.data.batches import EVALUATION_BATCH_SIZE, Batches, image_batches, pixel_mean_and_std
from training.data.dataset import Dataset
from training.distributed.process_group import ALONE, Processes
from training.distributed.synchronised_layers import SynchronisedLayers
from training.fitting.batch_statistics import with_batch_statistics
from training.fitting.checkpoints import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    CheckpointFiles,
    checkpoint_to_resume,
    load_checkpoint,
    require_space,
)
from training.fitting.lightning_module import OneCycleModule, epoch_seed
from training.fitting.unit_diagnostics import Diagnosis, EpochDiagnostics, LayerHealth, diagnose
from training.fitting.weight_averaging import weight_averaging
from training.network.classifier import Classifier, build_classifier, count_parameters
from training.network.pretrained_backbone import load_backbone

logger = logging.getLogger(__name__)


_MONITORED = "validation_loss"
"""What the best weights have the least of."""


class History(Callback):
    """Records the losses and the accuracy of each epoch; they are saved in checkpoints."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of this epoch, and log them where there is no progress bar."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append(metrics)
        if not _stdout_is_terminal():
            shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
            logger.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, shown)

    @property
    def has_diverged(self) -> bool:
        """Whether the last epoch's validation loss is infinite or no number."""
        return bool(self.epochs) and not math.isfinite(self.epochs[-1][_MONITORED])

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded epochs for a checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the recorded epochs from a checkpoint."""
        self.epochs = state_dict["epochs"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch if the checkpoint is of a training that had diverged."""
        trainer.should_stop = trainer.should_stop or self.has_diverged


class StopEarly(EarlyStopping):
    """Ends a training whose validation loss no longer improves, also one that is resumed then."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch if the checkpoint is of a training that had ended."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class KeepTerminationHandler(Callback):
    """Puts the process's own handler of SIGTERM back in the place of Lightning's.

    Lightning's tells the other processes by a collective operation, and waits for them forever
    where they are in another one.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it back; Lightning has put its own there just before."""
        signal.signal(signal.SIGTERM, self._handler)


@dataclass(frozen=True)
class TrainResult:
    """The trained network, and the course of its training."""

    network: Classifier
    """On the CPU, in evaluation mode, with the (averaged) weights of the least validation loss."""
    history: list[dict[str, float]]
    """Losses and accuracy by name, for each epoch; the training loss alone, for equal parts of the
    steps, of a head on a frozen backbone."""
    before: tuple[LayerHealth, ...]
    """Health of the hidden layers on the validation images before the first step, with batch
    normalisation's statistics of training images."""
    epochs: list[EpochDiagnostics]
    """Diagnostics of each epoch."""
    after: tuple[LayerHealth, ...]
    """Health of the hidden layers on the validation images with the weights of `network`."""
    renormalised: tuple[LayerHealth, ...]
    """As `after`, with batch normalisation's statistics of training images."""


def fit(
    config: TrainingConfig,
    data: Dataset,
    run: Path,
    resume: bool,
    callbacks: Sequence[Callback] = (),
    processes: Processes = ALONE,
) -> TrainResult:
    """Train the network that `config` describes; return its best weights and its diagnostics.

    Args:
        config: the options of the run.
        data: the training and validation images are used, the test images are not.
        run: folder for logs and checkpoints.
        resume: continue from the last checkpoint in `run`.
        callbacks: further Lightning callbacks, called after the own ones.
        processes: this one is the first; each other one runs `help_fit`.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the last checkpoint is kept.
        SettingsError: there is no sound checkpoint to resume.
        RunError: the disk is too small, the best checkpoint was damaged meanwhile, or no epoch has
            a finite validation loss.
        OSError: a checkpoint or log cannot be written; the last checkpoint is kept.
        SystemExit: another process has ended; the last checkpoint is kept.
    """
    network = _initial_network(config, data, processes)
    require_space(run, config.output, count_parameters(network))
    before = _diagnose_by_batch(network, config, data)
    history, diagnosis = History(), Diagnosis()
    checkpoint = checkpoint_to_resume(run) if resume else None
    trainer = _trainer(config, data, run, [history, diagnosis, *callbacks], processes)
    with processes.connected():
        _run(trainer, network, config, data, checkpoint, processes)
    if history.has_diverged:
        _tell_of_divergence(config, history)
    network = _with_best_weights(network, run)
    after = diagnose(network, image_batches(data.validation))
    renormalised = _diagnose_by_batch(network, config, data)
    return TrainResult(network, history.epochs, before, diagnosis.epochs, after, renormalised)


def _diagnose_by_batch(
    network: Classifier, config: TrainingConfig, data: Dataset
) -> tuple[LayerHealth, ...]:
    """Return the health on the validation images as a training step normalises them."""
    # A pretrained backbone keeps its own statistics in training.
    by_batch = network if config.has_backbone else with_batch_statistics(network, data.train)
    return diagnose(by_batch, image_batches(data.validation))


def _tell_of_divergence(config: TrainingConfig, history: History) -> None:
    """Log that the last weights are of no use; raise RunError if there are no others."""
    losses = [epoch[_MONITORED] for epoch in history.epochs]
    first = [math.isfinite(loss) for loss in losses].index(False)
    diverged = (
        f"training diverged: from epoch {first + 1} on the validation loss is {losses[first]}"
    )
    remedy = f"--learning-rate {config.peak_learning_rate / 3:.2g}"
    if first == 0:
        raise RunError(f"The {diverged}; train again, without --resume and with {remedy}.")
    logger.warning(
        "Warning: the %s, so the weights are those of an epoch before. Try %s.", diverged, remedy
    )


def help_fit(
    config: TrainingConfig, data: Dataset, run: Path, resume: bool, processes: Processes
) -> None:
    """Take the part of this process, which is not the first, in the `fit` of the first one.

    Nothing is read from `run`, and nothing written.
    """
    network = _initial_network(config, data, processes)
    checkpoint = run / LAST_CHECKPOINT if resume else None
    trainer = _trainer(config, data, run, [History(), Diagnosis()], processes)
    with processes.connected():
        _run(trainer, network, config, data, checkpoint, processes)


def _initial_network(config: TrainingConfig, data: Dataset, processes: Processes) -> Classifier:
    """Return the untrained network, the same in all processes, after setting up torch."""
    silence_warnings()
    threads = config.threads or data.defaults.threads
    if threads is None and processes.local_count > 1:
        threads = max(1, available_processors() // processes.local_count)
    if threads is not None:
        torch.set_num_threads(threads)
    seed_everything(config.seed, verbose=False)
    network = build_classifier(describe_architecture(config, data), *pixel_mean_and_std(data.train))
    if config.has_backbone:
        assert config.backbone is not None
        network.trunk = load_backbone(config.backbone)[0]
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _run(
    trainer: Trainer,
    network: Classifier,
    config: TrainingConfig,
    data: Dataset,
    checkpoint: Path | None,
    processes: Processes,
) -> None:
    def shuffled(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, trainer.current_epoch))
        return torch.randperm(count, generator=generator)

    size, shard = config.batch_size or data.defaults.batch_size, processes.shard
    try:
        trainer.fit(
            OneCycleModule(network, config, data, shard),
            Batches(data.train, size, shuffled, shard),
            Batches(data.validation, EVALUATION_BATCH_SIZE, shard=shard),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit as error:
        # On Ctrl-C, Lightning exits with status 1.
        if trainer.interrupted and error.code == 1:
            raise KeyboardInterrupt from None
        raise


def _trainer(
    config: TrainingConfig,
    data: Dataset,
    run: Path,
    callbacks: list[Callback],
    processes: Processes,
) -> Trainer:
    bar: list[Callback] = [RichProgressBar()] if _stdout_is_terminal() else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    share = averaged_share(config, data)
    # After the diagnosis, so that this sees the averages with which validation runs.
    averaging = [weight_averaging(share, device)] if share > 0 else []
    epochs = config.epochs or data.defaults.epochs
    return Trainer(
        max_epochs=epochs,
        precision="bf16-mixed" if _has_bf16() else "32-true",
        accelerator=device,
        # Response normalisation has no deterministic gradient on GPUs.
        deterministic="warn" if config.preset == "alexnet" else True,
        callbacks=[
            *callbacks,
            *averaging,
            *([KeepTerminationHandler()] if processes.count > 1 else []),
            # The loss is noisy until the learning rate falls, in the second half of the schedule.
            StopEarly(_MONITORED, patience=config.patience or -(-epochs // 2)),
            ModelCheckpoint(run, "best", monitor=_MONITORED, enable_version_counter=False),
            ModelCheckpoint(run, "last", enable_version_counter=False),
            *bar,
        ],
        logger=[CSVLogger(run, "csv"), TensorBoardLogger(run, "tensorboard", version="")],
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        **_distribution(config, processes),
    )


def _distribution(config: TrainingConfig, processes: Processes) -> dict[str, Any]:
    """Return the trainer's arguments that say how processes share the work."""
    checkpoints = CheckpointFiles(processes)
    if processes.count == 1:
        return {"devices": 1, "plugins": [checkpoints]}
    return {
        "devices": processes.local_count,
        "num_nodes": processes.machines,
        "strategy": DDPStrategy(
            cluster_environment=LightningEnvironment(),
            # A pretrained trunk has no gradients in the first epochs.
            find_unused_parameters=config.has_backbone,
        ),
        "plugins": [checkpoints, SynchronisedLayers(processes.shard)],
    }


def _with_best_weights(network: Classifier, run: Path) -> Classifier:
    """Load the best checkpoint's weights onto the CPU, in the memory layout of the exporter."""
    checkpoint = load_checkpoint(run / BEST_CHECKPOINT)
    if checkpoint is None:
        raise RunError(f"{run / BEST_CHECKPOINT} is damaged; train again without --resume.")
    prefix = "network."  # the attribute of ClassifierModule
    network = network.cpu().eval()
    network.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
    )
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def describe_architecture(config: TrainingConfig, data: Dataset) -> Architecture:
    """Return the architecture of the network that `config` selects for this data set."""
    backbone = ONNX_BACKBONE if config.has_onnx_backbone else EFFICIENTNET_LITE0
    return Architecture(
        preset=None if config.has_backbone else config.preset,
        activation=config.activation,
        negative_slope=config.negative_slope,
        dropout=config.dropout,
        classes=len(data.class_names),
        input=data.input,
        backbone=backbone if config.has_backbone else None,
        head_layers=config.head_layers,
    )


def averaged_share(config: TrainingConfig, data: Dataset) -> float:
    """Return `config.weight_averaging`, or the default of the data set."""
    share = config.weight_averaging
    return data.defaults.weight_averaging if share is None else share


def _has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _stdout_is_terminal() -> bool:
    return sys.stdout.isatty()


def silence_warnings() -> None:
    """Turn off the hints and the warnings of Lightning and torch, and configure deterministic CUDA.

    The hints concern data loaders with workers, which data sets in memory do not need.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic CUDA matmul
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
