"""Trains heads on the features of images that are divided into folds. Knows no backbone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle.architecture_description import Architecture
from model.uncertainty.uncertainty_measures import softmax
from training.export.calibrate import fit_temperature
from training.network.classifier import Head, build_backbone_head
from training.transfer.training_one_head import HeadOptions, fit_head


@dataclass(frozen=True)
class HeadTraining:
    """What all heads of a training are trained with, whatever their options."""

    architecture: Architecture
    views: NDArray[np.float32]
    """[N, V, F], the features of V views of each image; the first view is the whole image."""
    labels: NDArray[np.int64]
    """[N]."""
    folds: NDArray[np.int64]
    """[N], the fold of each image."""
    class_weights: NDArray[np.float32] | None
    """[K]; None for equal ones."""
    seed: int

    @property
    def whole(self) -> NDArray[np.float32]:
        """The features of the whole images, [N, F]."""
        return self.views[:, 0]

    def fit(self, options: HeadOptions) -> tuple[Head, list[float]]:
        """Train a head on all images; return it and its losses."""
        return self._fit(options, np.ones(len(self.labels), np.bool_))

    def fit_folds(self, options: HeadOptions) -> list[Head]:
        """Train a head for each fold, on the images of all others."""
        return [self._fit(options, self.folds != fold)[0] for fold in range(self.folds.max() + 1)]

    def held_out_logits(self, heads: Sequence[Head]) -> NDArray[np.float32]:
        """Return the logits [N, K] of each image by the head of its fold."""
        return held_out_logits(heads, self.whole, self.folds)

    def held_out_losses(self, heads: Sequence[Head]) -> NDArray[np.float64]:
        """Return -ln p of each image's class by the head of its fold, after calibration: [N]."""
        logits = self.held_out_logits(heads)
        temperature = fit_temperature(logits[:, np.newaxis], self.labels)
        likely = softmax(logits, temperature)[np.arange(len(self.labels)), self.labels]
        losses: NDArray[np.float64] = -np.log(np.maximum(likely, np.finfo(np.float64).tiny))
        return losses

    def _fit(self, options: HeadOptions, rows: NDArray[np.bool_]) -> tuple[Head, list[float]]:
        described = self.architecture.model_copy(update={"dropout": options.dropout})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = build_backbone_head(described, self.views.shape[-1])
        features = torch.from_numpy(self.views[rows])
        labels = torch.from_numpy(self.labels[rows])
        weights = None if self.class_weights is None else torch.from_numpy(self.class_weights)
        return head, fit_head(head, features, labels, options, self.seed, weights)


def held_out_logits(
    heads: Sequence[Head], features: NDArray[np.float32], folds: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the logits [N, K] of each image by the head of its fold; features [N, F]."""
    logits = np.empty((len(features), heads[0].widths[-1]), np.float32)
    with torch.no_grad():
        for fold, head in enumerate(heads):
            inside = folds == fold
            logits[inside] = head(torch.from_numpy(features[inside])).numpy()
    return logits
