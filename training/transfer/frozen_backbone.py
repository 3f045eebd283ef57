"""What the training of a head knows of the network whose features it is trained on."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model.errors import ExportError, SettingsError
from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.transfer.efficientnet_lite_backbone import LiteBackbone
from training.transfer.onnx_backbone import OnnxBackbone

Features = NDArray[np.float32]


class FrozenBackbone(Protocol):
    """A pretrained network that stays as it is."""

    @property
    def digest(self) -> str:
        """Of all that determines the features of an image: 64 hexadecimal digits."""

    @property
    def spec(self) -> InputSpec | None:
        """What images are turned into; None: what the options say."""

    @property
    def trunk(self) -> nn.Module:
        """The network as the trunk of a `Classifier`, in evaluation mode."""

    def features(self, images: NDArray[np.float32]) -> Features:
        """Return the features, float32 [N, F], of images float32 [N, C, H, W] in 0..1."""


def open_backbone(config: TrainingConfig) -> FrozenBackbone | None:
    """Load the network that `config.backbone` names; None where it is not a frozen one.

    Raises:
        SettingsError: its weights cannot be read, or its graph cannot be used.
    """
    if not config.is_frozen:
        return None
    if not config.has_onnx_backbone:
        return LiteBackbone(config)
    try:
        return OnnxBackbone.read(config)
    except ExportError as error:
        raise SettingsError(f"--backbone: {error}") from None
