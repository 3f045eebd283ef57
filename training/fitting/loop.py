"""The training loop, Lightning's. Knows no bundle and no report.

Two runs with one configuration on one machine give identical weights, and so does a run that was
killed between two epochs and resumed: the order of images, the augmentation and dropout are drawn
anew for each epoch from (seed, epoch).
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from model.bundle.architecture import Architecture
from training.config import TrainingConfig
from training.data.batches import EVALUATION_BATCH, Batches, pixel_statistics, pixels
from training.data.dataset import DataSet
from training.fitting.diagnostics import Diagnosis, Epoch, LayerHealth, diagnose
from training.fitting.module import OneCycle, epoch_seed
from training.network.classifier import Classifier, build

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"


class History(Callback):
    """The figures of each epoch, kept in the checkpoint so that a resumed run has them all."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record this epoch, and print it where there is no progress bar."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append(figures)
        if not _interactive():
            shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))
            logger.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, shown)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what a checkpoint kept."""
        self.epochs = state_dict["epochs"]


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the best weights, and how it came to them."""

    network: Classifier
    """On the CPU, in evaluation mode, with the weights of the best validation loss."""
    history: list[dict[str, float]]
    """Each epoch's losses and accuracy."""
    before: tuple[LayerHealth, ...]
    """The hidden layers on the validation images before the first step."""
    epochs: list[Epoch]
    """The hidden layers and gradients of each epoch."""
    after: tuple[LayerHealth, ...]
    """The hidden layers on the validation images with the weights that were kept."""


def fit(
    config: TrainingConfig,
    data: DataSet,
    run: Path,
    resume: bool,
    watchers: Sequence[Callback] = (),
) -> TrainResult:
    """Train, and return the network with the best validation loss, and what was seen on the way.

    Args:
        config: the run's description.
        data: its training and validation parts are used, its test part is not.
        run: folder for logs and checkpoints.
        resume: continue from the last checkpoint in `run`.
        watchers: told of every step besides, last of all.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the last checkpoint stays.
    """
    silence_warnings()
    threads = config.threads or data.recipe.threads
    if threads is not None:
        torch.set_num_threads(threads)
    seed_everything(config.seed, verbose=False)
    network = build(architecture(config, data), *pixel_statistics(data.train))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = diagnose(network, pixels(data.validation))
    history, diagnosis = History(), Diagnosis()
    trainer = _trainer(config, data, run, [history, diagnosis, *watchers])

    def shuffled(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, trainer.current_epoch))
        return torch.randperm(count, generator=generator)

    try:
        trainer.fit(
            OneCycle(network, config, data),
            Batches(data.train, config.batch_size or data.recipe.batch_size, shuffled),
            Batches(data.validation, EVALUATION_BATCH),
            ckpt_path=run / LAST_CHECKPOINT if resume else None,
            weights_only=True,
        )
    except SystemExit as error:
        if (
            trainer.interrupted and error.code == 1
        ):  # Lightning's answer to Ctrl-C is to exit with status 1
            raise KeyboardInterrupt from None
        raise
    network = _with_best_weights(network, run)
    after = diagnose(network, pixels(data.validation))
    return TrainResult(network, history.epochs, before, diagnosis.epochs, after)


def _trainer(config: TrainingConfig, data: DataSet, run: Path, own: list[Callback]) -> Trainer:
    bar: list[Callback] = [RichProgressBar()] if _interactive() else []
    monitored, epochs = "validation_loss", config.epochs or data.recipe.epochs
    return Trainer(
        max_epochs=epochs,
        precision="bf16-mixed" if _has_bf16() else "32-true",
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        # Response normalisation has no deterministic gradient on GPUs.
        deterministic="warn" if config.preset == "alexnet" else True,
        callbacks=[
            *own,
            # The loss is noisy until the rate falls, in the second half of the schedule.
            EarlyStopping(monitored, patience=config.patience or -(-epochs // 2)),
            ModelCheckpoint(run, "best", monitor=monitored, enable_version_counter=False),
            ModelCheckpoint(run, "last", enable_version_counter=False),
            *bar,
        ],
        logger=[CSVLogger(run, "csv"), TensorBoardLogger(run, "tensorboard", version="")],
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
    )


def _with_best_weights(network: Classifier, run: Path) -> Classifier:
    """Load the best checkpoint's weights, for use on the CPU, laid out as exporters expect."""
    checkpoint = torch.load(run / BEST_CHECKPOINT, weights_only=True, map_location="cpu")
    prefix = "network."  # the attribute of Fitting
    network = network.cpu().eval()
    network.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
    )
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def architecture(config: TrainingConfig, data: DataSet) -> Architecture:
    """Describe the network that `config` asks for on this data."""
    return Architecture(
        preset=config.preset,
        activation=config.activation,
        negative_slope=config.negative_slope,
        dropout=config.dropout,
        classes=len(data.class_names),
        input=data.input,
    )


def _has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _interactive() -> bool:
    return sys.stdout.isatty()


def silence_warnings() -> None:
    """Silence hints that do not concern arrays in memory, and warnings inside the libraries."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic CUDA matmul
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
