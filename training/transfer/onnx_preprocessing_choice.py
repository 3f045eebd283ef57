"""Chooses how pixels become the numbers of an ONNX backbone: one of the usual rules.

A file does not say whether its network takes 0..1 or 0..255, and with which mean. Wrong rules by
far are found by heads on the features, which are then wrong on held-out images. Among those that
serve about equally well, the classifier that was cut off decides: it is surest of photographs that
look as those that it was trained with, also of classes that it does not know.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ExportError
from model.images.preprocessing import to_float
from model.uncertainty.uncertainty_measures import softmax
from training.adoption.graph_cut import Dense
from training.adoption.input_layout import Preprocessing
from training.transfer.onnx_backbone import OnnxBackbone

logger = logging.getLogger(__name__)

_IMAGES = 128
_STANDARD_ERRORS = 2.0
"""Rules are about equal if their losses differ by at most so many standard errors."""

HeldOutLosses = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float64]]
"""Maps features of images, float32 [M, F], and their rows, int64 [M], to a loss of each, [M]."""


@dataclass(frozen=True)
class _Trial:
    """What came of one rule."""

    losses: NDArray[np.float64]
    entropy: float
    """Mean of the classifier's predictions in nats; 0 without a classifier."""

    @property
    def nll(self) -> float:
        return float(self.losses.mean())

    def is_about_as_good_as(self, best: "_Trial") -> bool:
        worse = self.losses - best.losses
        limit = _STANDARD_ERRORS * worse.std() / np.sqrt(len(worse))
        return bool(worse.mean() <= limit)


def choose_pixel_rule(
    backbone: OnnxBackbone,
    rules: Mapping[str, Preprocessing],
    images: NDArray[np.uint8],
    losses: HeldOutLosses,
) -> OnnxBackbone:
    """Return the backbone with the rule that suits it, and log what came of each.

    Args:
        backbone: whose rule is not stated.
        rules: by name, from `possible_rules`.
        images: for training, uint8 [N, C, H, W]; at most _IMAGES are used.
        losses: of images that are held out from heads on the features of the others.

    Raises:
        ExportError: every rule gives features that are no numbers.
    """
    rows = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).astype(np.int64)
    trials: dict[str, _Trial] = {}
    for name, rule in rules.items():
        try:
            features = backbone.with_rule(rule).features(to_float(images[rows]))
        except ExportError as error:
            logger.info("pixels as %s: %s", name, error)
            continue
        trial = _Trial(losses(features, rows), _entropy(features, backbone.cut.classifier))
        trials[name] = trial
        logger.info(
            "pixels as %s: NLL %.3f on %d images, entropy of the file's own classes %.3f",
            *(name, trial.nll, len(rows), trial.entropy),
        )
    if not trials:
        raise ExportError(
            f"{backbone.file} gives no finite features for any usual rule of pixels; state its own "
            "with --mean, --std and --pixel-maximum, or export it in float32."
        )
    best = min(trials.values(), key=lambda trial: trial.nll)
    equal = {name: each for name, each in trials.items() if each.is_about_as_good_as(best)}
    chosen = min(equal, key=lambda name: (equal[name].entropy, equal[name].nll))
    logger.info("Preprocessing: %s; name another with --mean and --std.", chosen)
    return backbone.with_rule(rules[chosen])


def _entropy(features: NDArray[np.float32], classifier: Dense | None) -> float:
    """Return the mean entropy of the probabilities that the classifier gives, in nats."""
    if classifier is None:
        return 0.0
    logits = features.astype(np.float64) @ classifier.weight
    probabilities = softmax(logits if classifier.bias is None else logits + classifier.bias)
    return -float((probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=1).mean())
