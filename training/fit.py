"""The training loop, Lightning's. Knows no bundle and no report.

Two runs with one configuration on one machine give identical weights, and so does a run that was
killed between two epochs and resumed: the order of images, the augmentation and dropout are drawn
anew for each epoch from (seed, epoch).
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from model.architecture import Architecture
from model.network import Classifier, build
from training import augment
from training.config import TrainingConfig
from training.data import DataSet, Part
from training.diagnosis import Diagnosis, Epoch, LayerHealth, diagnose

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
EVALUATION_BATCH = 512
_WARM_UP_SHARE = 0.3  # of the one-cycle schedule (Smith & Topin 2018; torch's default)

Batch = tuple[Tensor, Tensor]


class Batches:
    """Batches (images uint8 [B, C, H, W], labels int64 [B]) cut from arrays in memory.

    order: gives the rows of one pass, or None for the order as stored. A shuffled last batch that
    is not full is left out, so that batch normalisation never sees a lone image.
    """

    def __init__(self, part: Part, size: int, order: Callable[[int], Tensor] | None = None) -> None:
        self._images, self._labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
        self._size = min(size, len(part))
        self._order = order

    def __len__(self) -> int:
        rounding = 0 if self._order else self._size - 1
        return (len(self._labels) + rounding) // self._size

    def __iter__(self) -> Iterator[Batch]:
        rows = self._order(len(self._labels)) if self._order else torch.arange(len(self._labels))
        for start in range(0, len(self) * self._size, self._size):
            picked = rows[start : start + self._size]
            yield self._images[picked], self._labels[picked]


class Fitting(LightningModule):
    """Cross-entropy of one `Classifier` on augmented batches; a subclass brings the optimiser."""

    def __init__(
        self,
        network: Classifier,
        classes: int,
        augmentation: Callable[[Tensor], Tensor],
        max_norm: float | None = None,
        dropout_samples: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.augment = augmentation
        self.max_norm = max_norm
        self.dropout_samples = dropout_samples
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """One step's loss on an augmented batch."""
        images, labels = batch
        with torch.autocast(self.device.type, enabled=False):  # places of pixels need 32 bits
            images = self.augment(images)
        loss = self._loss(laid_out(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of several thinned heads on one run of the trunk (Inoue 2019)."""
        features = self.network.trunk(images).unsqueeze(1)
        logits = self.network.head(features.expand(-1, self.dropout_samples, -1))
        repeated = labels.repeat_interleave(self.dropout_samples)
        return functional.cross_entropy(logits.flatten(0, 1), repeated)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then hold the hidden units to the longest weight vector that is allowed."""
        super().optimizer_step(*arguments, **named)
        if self.max_norm is not None:
            constrain(self.network, self.max_norm)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Log loss and accuracy on untouched images."""
        images, labels = batch
        logits = self.network(laid_out(images.float() / 255))
        loss = functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("validation_loss", loss, batch_size=len(labels), prog_bar=True)
        self.log("validation_accuracy", self.accuracy, batch_size=len(labels), prog_bar=True)


class OneCycle(Fitting):
    """AdamW with the one-cycle schedule, as a `TrainingConfig` describes it."""

    def __init__(self, network: Classifier, config: TrainingConfig, data: DataSet) -> None:
        name = config.augmentation or data.recipe.augmentation
        changes = augment.build(name, data.recipe.shift)
        samples = config.heads_a_step(data.recipe.dropout_samples)
        super().__init__(network, len(data.class_names), changes, config.max_norm, samples)
        self.config = config

    def on_train_epoch_start(self) -> None:
        """Seed dropout and augmentation for this epoch alone."""
        torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch))

    def configure_optimizers(self) -> Any:
        """AdamW without decay on biases and normalisation; the learning rate moves every step."""
        parameters = list(self.network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        rate = self.config.peak_learning_rate
        optimizer = torch.optim.AdamW(
            groups, lr=rate, weight_decay=self.config.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=_WARM_UP_SHARE,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def constrain(network: Classifier, max_norm: float) -> None:
    """Shorten each hidden unit's incoming weights to at most `max_norm` (Srivastava et al. 2014).

    In place, L2 norm; the output layer is left alone.
    """
    with torch.no_grad():
        for hidden in network.hidden_layers():
            weight = hidden.layer.weight
            weight.copy_(torch.renorm(weight, p=2, dim=0, maxnorm=max_norm))


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
class Fitted:
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


def fit(config: TrainingConfig, data: DataSet, run: Path, resume: bool) -> Fitted:
    """Train, and return the network with the best validation loss, and what was seen on the way.

    Args:
        config: the run's description.
        data: its training and validation parts are used, its test part is not.
        run: folder for logs and checkpoints.
        resume: continue from the last checkpoint in `run`.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the last checkpoint stays.
    """
    quieten()
    threads = config.threads or data.recipe.threads
    if threads is not None:
        torch.set_num_threads(threads)
    seed_everything(config.seed, verbose=False)
    network = build(architecture(config, data), *pixel_statistics(data.train))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = diagnose(network, pixels(data.validation))
    history, diagnosis = History(), Diagnosis()
    trainer = _trainer(config, data, run, [history, diagnosis])

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
    return Fitted(network, history.epochs, before, diagnosis.epochs, after)


def pixels(part: Part) -> Iterator[Tensor]:
    """Cut the part into batches of float32 [N, C, H, W] in 0..1, as the network takes them."""
    for images, _ in Batches(part, EVALUATION_BATCH):
        yield laid_out(images.float() / 255)


def _trainer(config: TrainingConfig, data: DataSet, run: Path, own: list[Callback]) -> Trainer:
    bar: list[Callback] = [RichProgressBar()] if _interactive() else []
    monitored = "validation_loss"
    return Trainer(
        max_epochs=config.epochs or data.recipe.epochs,
        precision="bf16-mixed" if _has_bf16() else "32-true",
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        # Response normalisation has no deterministic gradient on GPUs.
        deterministic="warn" if config.preset == "alexnet" else True,
        callbacks=[
            *own,
            EarlyStopping(monitored, patience=config.patience),
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


def pixel_statistics(part: Part) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels in 0..1, one a channel, from a histogram."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(part.images.shape[1]):
        pixels = torch.from_numpy(part.images[:, channel])
        counts = torch.bincount(pixels.flatten(), minlength=256).double()
        weights = counts / counts.sum()
        mean = (weights * levels).sum()
        variance = (weights * (levels - mean) ** 2).sum()
        means.append(float(mean))
        deviations.append(max(float(variance.sqrt()), 1 / 255))  # never divide by zero
    return means, deviations


def laid_out(images: Tensor) -> Tensor:
    """Channels last in memory: convolutions are half as fast again on CPUs, and faster on GPUs."""
    return images.contiguous(memory_format=torch.channels_last)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch's order, dropout and augmentation."""
    return seed * 100_003 + epoch + 1


def _has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _interactive() -> bool:
    return sys.stdout.isatty()


def quieten() -> None:
    """Silence hints that do not concern arrays in memory, and warnings inside the libraries."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic CUDA matmul
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
