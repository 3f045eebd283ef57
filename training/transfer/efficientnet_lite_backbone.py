"""EfficientNet-Lite0 as a frozen backbone. Knows no head."""

import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.container_resources import available_processors
from model.graphs.sessions import Session, create_session
from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.export.to_onnx import export_trunk
from training.network.efficientnet_lite import IMAGE_SIZE
from training.network.pretrained_backbone import digest, load_backbone, weights_file


class LiteBackbone:
    """The network with pretrained weights, run by ONNX Runtime.

    On a CPU that is three times as fast as torch, and gives the very numbers of the service.
    """

    spec: InputSpec | None = None

    def __init__(self, config: TrainingConfig) -> None:
        """Load the weights that `config.backbone` names.

        Raises:
            SettingsError: they cannot be read, or are those of another network.
        """
        assert config.backbone is not None
        self._threads = config.threads
        self._side = config.image_size or IMAGE_SIZE
        self.trunk = load_backbone(config.backbone)[0]
        self.digest = digest(weights_file(config.backbone))

    def features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features, float32 [N, F], of images float32 [N, C, H, W] in 0..1."""
        features: NDArray[np.float32] = self._session.run(["features"], {"images": images})[0]
        return features

    @cached_property
    def _session(self) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trunk.onnx"
            export_trunk(self.trunk, (3, self._side, self._side), file)
            return create_session(file.read_bytes(), self._threads or available_processors())
