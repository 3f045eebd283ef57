"""Chooses the dropout probability of a head that had none in the file, by its validation NLL."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bundle.architecture_description import DropoutLayer
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from training.adoption.preprocessing_choice import nll
from training.data.dataset import Split
from training.evaluation.metrics import SAMPLES, SEED
from training.evaluation.metrics_schema import DropoutChoiceMetrics
from training.export.calibrate import fit_temperature, mean_probabilities

logger = logging.getLogger(__name__)

CANDIDATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_MAX_VALUES = 2**25
"""Of logits, images x samples x classes, in memory."""


@dataclass(frozen=True)
class DropoutChoice:
    """The NLL of each candidate with its own temperature, on the images it was chosen by."""

    p: float
    """The one with the lowest NLL."""
    nll_by_p: dict[float, float]
    deterministic_nll: float
    """Without dropout, with its own temperature."""
    images: int

    def metrics(self) -> DropoutChoiceMetrics:
        """Return them as the manifest records them."""
        return {
            "images": self.images,
            "deterministic_nll": self.deterministic_nll,
            "nll": {f"{p:g}": loss for p, loss in self.nll_by_p.items()},
        }


def choose_dropout(folder: Path, widths: Sequence[int], split: Split) -> DropoutChoice:
    """Try CANDIDATES for all dropout layers together.

    Args:
        folder: of the finished graphs.
        widths: units of each dropout layer.
        split: validation images with the network's classes.
    """

    def layers(p: float) -> list[DropoutLayer]:
        return [DropoutLayer(p=p, width=width) for width in widths]

    predictor = Predictor.open(folder, layers(CANDIDATES[0]))
    most = max(1, _MAX_VALUES // (SAMPLES * predictor.classes))
    rows = np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64)
    labels = split.labels[rows]
    prediction = predictor.predict(to_float(split.images[rows]))
    plain = _calibrated_nll(prediction.logits[:, np.newaxis], labels)
    losses = {}
    for p in CANDIDATES:
        sampler = Predictor.open(folder, layers(p))
        sampled = sampler.sample(prediction.features, FixedSamples(SEED, SAMPLES))
        losses[p] = _calibrated_nll(sampled, labels)
    best = min(losses, key=losses.__getitem__)
    logger.info(
        "Validation NLL without dropout %.4f; with it %s.",
        plain,
        ", ".join(f"{p:g}: {loss:.4f}" for p, loss in losses.items()),
    )
    if losses[best] > plain:
        logger.warning(
            "Warning: every dropout makes the answers worse. Of these, %g is taken, the least bad; "
            "use /predict for labels, and do not expect much of the mutual information.",
            best,
        )
    else:
        logger.info("Dropout %g is taken, the one with the lowest NLL.", best)
    return DropoutChoice(best, losses, plain, len(labels))


def _calibrated_nll(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the NLL of the mean probabilities of sampled logits [N, T, K] at their temperature."""
    return nll(mean_probabilities(logits, fit_temperature(logits, labels)), labels)
