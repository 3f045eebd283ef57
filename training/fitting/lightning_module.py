"""Defines a training step as Lightning modules: augmentation, loss, optimizer. Knows no trainer."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from training.config import TrainingConfig
from training.data.augmentation import build_augmentation
from training.data.batches import Batch, to_channels_last
from training.data.class_balance import class_weights
from training.data.dataset import Dataset
from training.data.shard import WHOLE, Shard
from training.distributed.process_group import mean_over_processes
from training.fitting.learning_rate_schedule import one_cycle, update_every_step
from training.network.classifier import Classifier

_BACKBONE_RATE = 0.1
"""Learning rate of the last pretrained block, as a share of the head's."""
_RATE_DECAY = 0.9
"""Learning rate of a pretrained block as a share of the next one's (discriminative rates, Howard &
Ruder 2018): the first ones, of edges and colours, need the least change."""
_HEAD_SHARE = 0.2
"""Share of the epochs, from the first, in which a pretrained backbone stays as it is."""


class ClassifierModule(LightningModule):
    """Trains one `Classifier` with cross-entropy; a subclass configures the optimizer."""

    def __init__(
        self,
        network: Classifier,
        classes: int,
        augmentation: Callable[[Tensor], Tensor],
        max_norm: float | None = None,
        dropout_samples: int = 1,
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Wrap `network`.

        Args:
            network: the classifier to train.
            classes: number of classes K.
            augmentation: maps uint8 images [N, C, H, W] to float32 images in 0..1.
            max_norm: largest L2 norm of a hidden unit's incoming weights; None for no limit.
            dropout_samples: thinned heads that the loss of a step averages.
            class_weights: of each class in the training loss, [K]; None for equal ones.
        """
        super().__init__()
        self.network = network
        self.augment = augmentation
        self.max_norm = max_norm
        self.dropout_samples = dropout_samples
        weights = None if class_weights is None else torch.from_numpy(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        # Lightning's own mean over processes rounds their numbers of images.
        self.validation_loss = MeanMetric()

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Return the loss of one augmented batch, a scalar."""
        images, labels = batch
        with torch.autocast(self.device.type, enabled=False):  # pixel coordinates need 32 bits
            images = self.augment(images)
        loss = self._loss(to_channels_last(images), labels) * self._weight_of_process(labels)
        count = len(labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=count)
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of several thinned heads on one trunk run (Inoue 2019)."""
        features = self.network.trunk(images).unsqueeze(1)
        logits = self.network.head(features.expand(-1, self.dropout_samples, -1))
        repeated = labels.repeat_interleave(self.dropout_samples)
        return functional.cross_entropy(logits.flatten(0, 1), repeated, self.class_weights)

    def _weight_of_process(self, labels: Tensor) -> Tensor | float:
        """Return what the loss of these images counts beside those of other processes, mean 1.

        Class weights may give the images of one process more weight than those of another.
        """
        if self.class_weights is None:
            return 1.0
        weight = self.class_weights[labels].sum()
        return weight / mean_over_processes(weight)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Take the optimizer's step, then limit the norms of the hidden units' weights."""
        super().optimizer_step(*arguments, **named)
        if self.max_norm is not None:
            apply_max_norm(self.network, self.max_norm)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Log the loss and the accuracy of one batch without augmentation."""
        images, labels = batch
        logits = self.network(to_channels_last(images.float() / 255))
        loss = functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.validation_loss(loss, len(labels))
        self.log("validation_loss", self.validation_loss, batch_size=len(labels), prog_bar=True)
        self.log("validation_accuracy", self.accuracy, batch_size=len(labels), prog_bar=True)


class OneCycleModule(ClassifierModule):
    """Trains with AdamW and the one-cycle schedule, as a `TrainingConfig` configures them."""

    def __init__(
        self, network: Classifier, config: TrainingConfig, data: Dataset, shard: Shard = WHOLE
    ) -> None:
        augmentation = build_augmentation(
            config.augmentation or data.defaults.augmentation, data.defaults.shift, shard
        )
        classes = len(data.class_names)
        super().__init__(
            network,
            classes,
            augmentation,
            config.max_norm,
            config.heads_per_step,
            class_weights(data.train.labels, classes, config.class_weights),
        )
        self.config = config

    def on_train_epoch_start(self) -> None:
        """Seed the dropout and the augmentation of this epoch; freeze what is not to be trained."""
        torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch))
        if self.config.has_backbone:
            assert self.trainer.max_epochs is not None
            head_epochs = round(_HEAD_SHARE * self.trainer.max_epochs)
            prepare_backbone(self.network.trunk, self.current_epoch >= head_epochs)

    def configure_optimizers(self) -> Any:
        """Return AdamW, without weight decay on biases and normalisation, and its schedule."""
        rate = self.config.peak_learning_rate
        parts = [(self.network.trunk, rate)]
        if self.config.has_backbone:
            blocks = reversed(list(self.network.trunk.children()))
            rates = (rate * _BACKBONE_RATE * _RATE_DECAY**depth for depth in count())
            parts = list(zip(blocks, rates, strict=False))
        parts.append((self.network.head, rate))
        groups: list[dict[str, Any]] = []
        for part, part_rate in parts:
            matrices = [p for p in part.parameters() if p.ndim > 1]
            vectors = [p for p in part.parameters() if p.ndim <= 1]
            groups += [
                {"params": matrices, "lr": part_rate},
                {"params": vectors, "lr": part_rate, "weight_decay": 0.0},
            ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(
            groups, lr=rate, weight_decay=self.config.weight_decay, fused=True
        )
        steps = int(self.trainer.estimated_stepping_batches)
        return update_every_step(
            optimizer, one_cycle(optimizer, [group["lr"] for group in groups], steps)
        )


def apply_max_norm(network: Classifier, max_norm: float) -> None:
    """Rescale, in place, each hidden unit's incoming weights to an L2 norm of at most `max_norm`.

    Shorter weight vectors and the output layer are not changed.

    Source: Srivastava et al. 2014.
    """
    with torch.no_grad():
        for hidden in network.hidden_layers():
            weight = hidden.layer.weight
            weight.copy_(torch.renorm(weight, p=2, dim=0, maxnorm=max_norm))


def prepare_backbone(trunk: nn.Module, is_trained: bool) -> None:
    """Set, in place, what the next epoch changes of a pretrained network in training mode.

    Its batch normalisation keeps the statistics of the pretraining: those of small batches are too
    noisy. Its weights get gradients only if `is_trained`.
    """
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    trunk.requires_grad_(is_trained)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of the order, dropout and augmentation of one epoch, counted from 0."""
    return seed * 100_003 + epoch + 1
