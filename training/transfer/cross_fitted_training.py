"""Trains a head on a frozen backbone, with cross-fitting in the place of validation images.

The training images are divided into folds. For each fold a head is trained on the others; what it
says of the fold is held out, so every training image also serves validation: the choice of the
options, the calibration, typicality and prediction sets. The head of the bundle is then trained on
all of them with the same options, as in scikit-learn's `CalibratedClassifierCV(ensemble=False)`. It
has seen more images than the heads of the folds, so the calibration errs on the side of caution.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from model.dropout import masks
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.uncertainty.uncertainty_measures import softmax
from training.adoption.preprocessing_choice import possible_rules
from training.config import TrainingConfig
from training.data.class_balance import class_weights
from training.data.dataset import Dataset
from training.data.folds import stratified_folds
from training.evaluation.metrics import SAMPLES, SEED, classification_metrics
from training.export.cross_fitted_outputs import HeldOut
from training.fitting.training_loop import TrainResult, describe_architecture, silence_warnings
from training.network.classifier import Classifier, Head
from training.transfer.backbone_features import FeatureExtractor
from training.transfer.feature_standardisation import Standardisation
from training.transfer.frozen_backbone import FrozenBackbone
from training.transfer.heads_by_fold import HeadTraining, held_out_logits
from training.transfer.onnx_backbone import OnnxBackbone
from training.transfer.onnx_preprocessing_choice import choose_pixel_rule
from training.transfer.training_one_head import HeadOptions

logger = logging.getLogger(__name__)

FOLDS = 5
VIEWS = 4
"""Random views of each training image, beside the whole image."""
_SAMPLING = FixedSamples(SEED, SAMPLES)
_DROPOUTS = (0.25, 0.5)
_WEIGHT_DECAYS = (0.01, 1.0)
_LEARNING_RATE = 3e-3
_CHECKED_IMAGES = 3
_HISTORY = 40  # points of the learning curve


@dataclass(frozen=True)
class FrozenResult:
    """A trained head on a frozen backbone, and the heads of the folds."""

    result: TrainResult
    options: HeadOptions
    folds: NDArray[np.int64]
    """[N], the fold of each training image."""
    fold_heads: Sequence[Head]
    """By fold: trained on all images but those of the fold."""
    features: NDArray[np.float32]
    """[N, F], of the training images."""
    labels: NDArray[np.int64]
    """[N]."""

    def held_out(self) -> HeldOut:
        """Return what the heads say of the images that they were not trained on."""
        return HeldOut(
            self.labels,
            held_out_logits(self.fold_heads, self.features, self.folds),
            self.features,
            None,
            _SAMPLING,
            self._sample,
        )

    def options_entry(self) -> dict[str, Any]:
        """Return what the manifest records of the options that were chosen."""
        return {**asdict(self.options), "folds": int(self.folds.max()) + 1, "views": VIEWS}

    def _sample(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        layers = self.fold_heads[0].dropout_layers
        drawn = masks.draw(_SAMPLING.seed, _SAMPLING.samples, layers, _SAMPLING.design)
        layer_masks = [torch.tensor(mask) for mask in drawn]
        classes = self.fold_heads[0].widths[-1]
        logits = np.empty((len(rows), _SAMPLING.samples, classes), np.float32)
        with torch.no_grad():
            for fold, head in enumerate(self.fold_heads):
                inside = np.flatnonzero(self.folds[rows] == fold)
                features = torch.from_numpy(self.features[rows[inside]])
                logits[inside] = head.sample(features, layer_masks).numpy()
        return logits


def fit_frozen(config: TrainingConfig, data: Dataset, backbone: FrozenBackbone) -> FrozenResult:
    """Compute the features, choose the options on folds, and train the head on all images.

    Args:
        config: of a frozen backbone.
        data: a folder; its training images are used.
        backbone: the one that `config` names.

    Raises:
        ExportError: the backbone cannot be run.
    """
    silence_warnings()
    assert data.folder is not None
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    folds = stratified_folds(
        data.train.labels, data.folder.groups["train"], FOLDS, config.split_seed
    )
    if isinstance(backbone, OnnxBackbone):
        backbone, views = _prepare(config, data, backbone, folds)
    else:
        views = _features(config, data, backbone)
    training = _training(config, data, views, folds)
    options, fold_heads = _choose(config, training)
    head, losses = training.fit(options)
    labels = training.labels
    metrics = classification_metrics(softmax(training.held_out_logits(fold_heads)), labels)
    logger.info(
        "Head: dropout %g, weight decay %g; accuracy %.2f %% in %d folds",
        *(options.dropout, options.weight_decay, 100 * metrics["accuracy"], folds.max() + 1),
    )
    network = Classifier(backbone.trunk, head).eval()
    result = TrainResult(network, _history(losses), (), [], (), ())
    return FrozenResult(result, options, folds, fold_heads, training.whole, labels)


def _prepare(
    config: TrainingConfig, data: Dataset, backbone: OnnxBackbone, folds: NDArray[np.int64]
) -> tuple[OnnxBackbone, NDArray[np.float32]]:
    """Return the backbone with all that its images say of it, and their features [N, V, F].

    folds: int64 [N], of the training images.
    """
    if backbone.rule is None:
        backbone = _choose_pixel_rule(config, data, backbone, folds)
    backbone.check_batches(to_float(data.train.images[:_CHECKED_IMAGES]))
    views = _features(config, data, backbone)
    standardisation = Standardisation.fit(views[:, 0])
    return backbone.with_standardisation(standardisation), standardisation.apply(views)


def _choose_pixel_rule(
    config: TrainingConfig, data: Dataset, backbone: OnnxBackbone, folds: NDArray[np.int64]
) -> OnnxBackbone:
    """Return the backbone with one of the usual rules, by how wrong heads are on held-out images.

    folds: int64 [N], of the training images.
    """
    options = _candidates(config)[0]

    def losses(features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        views = Standardisation.fit(features).apply(features)[:, np.newaxis]
        training = _training(config, data, views, folds, rows)
        return training.held_out_losses(training.fit_folds(options))

    rules = possible_rules(backbone.image, config.colour == "bgr")
    return choose_pixel_rule(backbone, rules, data.train.images, losses)


def _training(
    config: TrainingConfig,
    data: Dataset,
    views: NDArray[np.float32],
    folds: NDArray[np.int64],
    rows: NDArray[np.int64] | slice = slice(None),
) -> HeadTraining:
    """Return the training of heads on features [M, V, F] of the training images at `rows`."""
    labels, classes = data.train.labels, len(data.class_names)
    return HeadTraining(
        architecture=describe_architecture(config, data),
        views=views,
        labels=labels[rows],
        folds=folds[rows],
        class_weights=class_weights(labels, classes, config.class_weights),
        seed=config.seed,
    )


def _features(
    config: TrainingConfig, data: Dataset, backbone: FrozenBackbone
) -> NDArray[np.float32]:
    """Return the features of the training images and of their views: [N, 1 + VIEWS, F].

    The whole image comes first; with `--augmentation none` there are no views.
    """
    assert data.folder is not None
    extractor = FeatureExtractor(backbone, data.input, config.cache_dir)
    parts = [extractor.of_images(data.train.images)[:, np.newaxis]]
    if config.augmentation != "none":
        files = [file for file, _ in data.folder.splits["train"]]
        parts.append(extractor.of_views(files, VIEWS, config.max_pixels))
    return np.concatenate(parts, axis=1)


def _history(losses: Sequence[float]) -> list[dict[str, float]]:
    """Return the points of the learning curve: the mean loss of each part of the steps."""
    return [{"train_loss": float(np.mean(part))} for part in np.array_split(losses, _HISTORY)]


def _choose(config: TrainingConfig, training: HeadTraining) -> tuple[HeadOptions, list[Head]]:
    """Return the options with the least held-out NLL after calibration, and their heads."""
    tried = []
    for options in track(
        _candidates(config), "Heads", transient=True, disable=not sys.stdout.isatty()
    ):
        heads = training.fit_folds(options)
        tried.append((training.held_out_losses(heads).mean(), options, heads))
    _, options, heads = min(tried, key=lambda each: each[0])
    return options, heads


def _candidates(config: TrainingConfig) -> list[HeadOptions]:
    """Return the options to try; one that the user gives is not tried otherwise."""
    given = config.model_fields_set
    dropouts = (config.dropout,) if "dropout" in given else _DROPOUTS
    decays = (config.weight_decay,) if "weight_decay" in given else _WEIGHT_DECAYS
    rate = config.learning_rate or _LEARNING_RATE
    return [HeadOptions(dropout, decay, rate) for dropout, decay in product(dropouts, decays)]
