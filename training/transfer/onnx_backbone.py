"""The network of an ONNX file as a frozen backbone: its own nodes are the trunk of the bundle.

It is read, cut and written by the code of `training.adoption`; only the head is trained.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bundle.architecture_description import BackboneFile
from model.container_resources import available_processors
from model.errors import ExportError
from model.graphs.sessions import Session
from model.images.preprocessing import InputSpec
from training.adoption.dynamic_batch import free_batch
from training.adoption.graph_cut import choose_cut, find_tail
from training.adoption.input_layout import NetworkInput, Preprocessing, read_input
from training.adoption.network_file import plain_name, read_network
from training.adoption.network_graph import NetworkGraph, create_session, without_dropout
from training.adoption.original_network import run_network
from training.adoption.preprocessing_choice import stated_rule
from training.adoption.trunk_and_head import names_of_statistics, write_graphs
from training.config import TrainingConfig
from training.export.to_onnx import PARITY_TOLERANCE
from training.network.classifier import Head
from training.network.efficientnet_lite import IMAGE_SIZE
from training.network.pretrained_backbone import digest
from training.transfer.classifier_removal import FEATURES, FeatureCut, cut_network, find_features
from training.transfer.feature_standardisation import Standardisation
from training.transfer.graph_of_backbone_and_head import FIRST_LAYER, graft_head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxBackbone:
    """The network of a file up to its features, and how pixels become its numbers."""

    file: Path
    model: onnx.ModelProto
    """Its only output is FEATURES; it has no dropout."""
    image: NetworkInput
    cut: FeatureCut
    spec: InputSpec
    rule: Preprocessing | None
    """None: it is still to be chosen."""
    threads: int
    standardisation: Standardisation | None = None
    """Of the features; None: they are the network's own."""

    @classmethod
    def read(cls, config: TrainingConfig) -> "OnnxBackbone":
        """Read and cut the file that `config.backbone` names.

        Raises:
            ExportError: it cannot be read, cut or run.
        """
        assert config.backbone is not None
        file = Path(config.backbone)
        model = without_dropout(read_network(file))
        size = None if config.image_size is None else (config.image_size, config.image_size)
        options = config.channels, config.layout, "--image-size", IMAGE_SIZE
        image = read_input(model, size, *options)
        network = _observed(model, image)
        cut = find_features(network, image.layout)
        logger.info(
            "%s: %d features, %s.",
            *(file.name, cut.width),
            f"dense layer {cut.classifier.name} cut off" if cut.classifier else "nothing cut off",
        )
        spec = InputSpec(
            channels=1 if image.channels == 1 else 3,
            height=image.height,
            width=image.width,
            resize=config.resize or "crop",
        )
        bgr = config.colour == "bgr"
        rule = stated_rule(image, config.mean, config.std, config.pixel_maximum, bgr)
        threads = config.threads or available_processors()
        return cls(file, cut_network(network, cut), image, cut, spec, rule, threads)

    def with_rule(self, rule: Preprocessing) -> "OnnxBackbone":
        """Return the same network for pixels that are converted by `rule`."""
        return replace(self, rule=rule)

    def with_standardisation(self, standardisation: Standardisation) -> "OnnxBackbone":
        """Return the same network whose features are standardised."""
        return replace(self, standardisation=standardisation)

    @property
    def digest(self) -> str:
        """Of what its own features depend on, graph, weights and rule: 64 hexadecimal digits."""
        content = hashlib.sha256(self.model.SerializeToString(deterministic=True))
        content.update(repr((self._stated_rule, self.image.layout)).encode())
        return content.hexdigest()

    @property
    def trunk(self) -> "OnnxTrunk":
        """The network as a module that cannot be trained."""
        return OnnxTrunk(self)

    def features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features, float32 [N, F], of images float32 [N, C, H, W] in 0..1.

        Raises:
            ExportError: one of them is no number.
        """
        features = run_network(self._session, FEATURES, self.image, images, self._stated_rule)
        if not np.isfinite(features).all():
            raise ExportError(
                f"{self.file} gives features that are no finite numbers; name its preprocessing "
                "with --mean, --std and --pixel-maximum, or export it in float32."
            )
        return features if self.standardisation is None else self.standardisation.apply(features)

    def check_batches(self, images: NDArray[np.float32]) -> None:
        """Let a network of a fixed number of images take any, and compare the features.

        images: float32 [N, C, H, W] in 0..1, of a few images.

        Raises:
            ExportError: it cannot, or gives other features then.
        """
        if self.image.batch is None:
            return
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        network = _observed(copy, self.image)
        free_batch(network)
        feed = {self.image.name: self.image.convert(images, self._stated_rule)}
        advice = "export it with a dynamic number of images (dynamic_axes or dynamic_shapes)."
        try:
            together = create_session(network.model).run([FEATURES], feed)[0]
        except Exception as error:  # ONNX Runtime raises its own untyped exceptions
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ExportError(
                f"The network does not run on {len(images)} images at once ({reason}); {advice}"
            ) from None
        if not np.allclose(together, self.features(images), PARITY_TOLERANCE, PARITY_TOLERANCE):
            raise ExportError(
                f"The network gives other features for {len(images)} images at once than for "
                f"{self.image.batch}; {advice}"
            )

    def write_graphs(self, head: Head, folder: Path, with_statistics: bool) -> list[str]:
        """Write the finished graphs of a bundle; return the names of the statistics.

        Args:
            head: on the CPU.
            folder: folder to write into.
            with_statistics: whether `model.onnx` has the output that
                `training.export.ood_graph` replaces.

        Raises:
            ExportError: a graph fails the ONNX checker.
        """
        network = _observed(graft_head(self.model, head, self.standardisation), self.image)
        cut = choose_cut(find_tail(network), FIRST_LAYER)
        free_batch(network)
        write_graphs(network, self.image, self._stated_rule, cut, folder, with_statistics)
        return names_of_statistics(network)

    def count_parameters(self) -> int:
        """Return how many numbers the network's constant arrays have, without those cut off."""
        return NetworkGraph(self.model).count_parameters()

    def describe(self) -> BackboneFile:
        """Return what the manifest records of the file."""
        classifier = self.cut.classifier
        return BackboneFile(
            file=self.file.name,
            sha256=digest(self.file),
            preprocessing=self._stated_rule.describe(),
            cut=plain_name(self.cut.value) if classifier is None else classifier.name,
            features=self.cut.width,
        )

    @property
    def _stated_rule(self) -> Preprocessing:
        assert self.rule is not None, "choose the preprocessing first"
        return self.rule

    @cached_property
    def _session(self) -> Session:
        return create_session(self.model, self.threads)


class OnnxTrunk(nn.Module):
    """A backbone as the trunk of a `Classifier`; ONNX Runtime computes it, without gradients."""

    def __init__(self, backbone: OnnxBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return features float32 [N, F] of images float32 [N, C, H, W] in 0..1."""
        return torch.from_numpy(self.backbone.features(images.numpy()))


def _observed(model: onnx.ModelProto, image: NetworkInput) -> NetworkGraph:
    """Return the graph of a network with the shapes of its values."""
    network = NetworkGraph(model)
    grey = np.full((image.batch or 2, *image.shape), 0.5, np.float32)
    network.observe(image.convert(grey, Preprocessing()))
    return network
