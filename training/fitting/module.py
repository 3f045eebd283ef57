"""What a training step is: the loss on an augmented batch, and the optimiser. Knows no trainer."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from training.config import TrainingConfig
from training.data import augmentation as augment
from training.data.batches import Batch, laid_out
from training.data.dataset import DataSet
from training.network.classifier import Classifier

_WARM_UP_SHARE = 0.3  # of the one-cycle schedule (Smith & Topin 2018; torch's default)


class ClassifierModule(LightningModule):
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


class OneCycle(ClassifierModule):
    """AdamW with the one-cycle schedule, as a `TrainingConfig` describes it."""

    def __init__(self, network: Classifier, config: TrainingConfig, data: DataSet) -> None:
        name = config.augmentation or data.recipe.augmentation
        changes = augment.build(name, data.recipe.shift)
        classes = len(data.class_names)
        super().__init__(network, classes, changes, config.max_norm, config.heads_a_step)
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


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch's order, dropout and augmentation."""
    return seed * 100_003 + epoch + 1
