"""Runs a network as it was before the cut: the reference that a bundle must agree with."""

import logging
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.special import log_softmax

from model.dropout.sampling_methods import FixedSamples
from model.errors import ExportError
from model.graphs.sessions import Session
from model.inference.predictor import Predictor
from model.uncertainty.uncertainty_measures import softmax
from training.adoption.graph_cut import OutputKind, Tail
from training.adoption.input_layout import NetworkInput, Preprocessing
from training.adoption.network_graph import create_session, without_dropout
from training.export.to_onnx import parity_tolerance

logger = logging.getLogger(__name__)

_RUN_IMAGES = 16
_BATCH_IMAGES = 8
_ALL_KEPT = FixedSamples(seed=0, samples=1)
"""With p = 0 the mask of the only sample zeroes nothing."""

Float32Array = NDArray[np.float32]


def run_network(
    session: Session,
    output: str,
    image: NetworkInput,
    images: Float32Array,
    rule: Preprocessing,
) -> Float32Array:
    """Return an output of a network as it was, [N, K], in batches of the size that it takes.

    Args:
        session: of the network.
        output: name of its output.
        image: its input.
        images: float32 [N, C, H, W] in 0..1.
        rule: how pixels become the network's numbers.
    """
    size = image.batch or _RUN_IMAGES
    parts = []
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        if image.batch is not None and len(rows) < size:
            rows = np.resize(rows, (size, *rows.shape[1:]))
        parts.append(session.run([output], {image.name: image.convert(rows, rule)})[0])
    answers = np.concatenate(parts)[: len(images)]
    return answers.reshape(len(images), -1)


@dataclass(frozen=True)
class Original:
    """The network of a file, with dropout inactive."""

    session: Session
    input: NetworkInput
    output: str
    output_kind: OutputKind

    @classmethod
    def start(cls, model: onnx.ModelProto, image: NetworkInput, tail: Tail) -> "Original":
        """Start a network that `training.adoption.network_file` read, before it is changed."""
        session = create_session(without_dropout(model))
        return cls(session, image, tail.output, tail.output_kind)

    def answers(self, images: Float32Array, rule: Preprocessing) -> Float32Array:
        """Return the network's own output, [N, K], for images float32 [N, C, H, W] in 0..1."""
        return run_network(self.session, self.output, self.input, images, rule)

    def probabilities(self, images: Float32Array, rule: Preprocessing) -> NDArray[np.float64]:
        """Return the class probabilities, [N, K]."""
        answers = self.answers(images, rule).astype(np.float64)
        match self.output_kind:
            case "logits":
                return softmax(answers)
            case "log-probabilities":
                return np.exp(answers)
            case "probabilities":
                return answers

    def check_parity(
        self, predictor: Predictor, images: Float32Array, rule: Preprocessing
    ) -> float:
        """Return the largest difference between the bundle's answers and the network's own.

        Logits are compared with logits, and what comes out of a softmax with the softmax of the
        bundle's logits. Both graphs are compared: the head with masks that zero nothing.

        Args:
            predictor: over the bundle's graphs, uncalibrated, with dropout layers of p = 0.
            images: float32 [N, C, H, W] in 0..1, real ones.
            rule: how pixels become the network's numbers.

        Raises:
            ExportError: the difference exceeds `parity_tolerance`.
        """
        try:
            prediction = predictor.predict(images)
            samples = predictor.sample(prediction.features, _ALL_KEPT)
        except Exception as error:  # ONNX Runtime raises its own untyped exceptions
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ExportError(
                f"The network does not run on several images at once ({reason}); {self._advice()}."
            ) from None
        reference = self.answers(images, rule)
        difference = max(
            float(np.abs(self._as_output(logits) - reference).max())
            for logits in (prediction.logits, samples[:, 0])
        )
        if not np.isfinite(difference):
            raise ExportError(
                "The network answers an image with numbers that are not finite, as with weights of "
                "NaN or with pixels of another range; export it again, or see --mean and --std."
            )
        tolerance = parity_tolerance(reference)
        if difference > tolerance:
            raise ExportError(
                f"The network cut in two answers differently than the file, by {difference:.2g} "
                f"in its {self.output_kind}, more than {tolerance:.2g}; {self._advice()}."
            )
        return difference

    def _advice(self) -> str:
        """Return what to try where the parts do not do what the whole does."""
        if self.input.batch is not None:
            return "export it with a dynamic number of images (dynamic_axes or dynamic_shapes)"
        return "cut it elsewhere with --cut, or export it with float32 weights"

    def _as_output(self, logits: Float32Array) -> NDArray[np.float64]:
        """Return what the network would have answered with these logits, [N, K]."""
        match self.output_kind:
            case "logits":
                return logits.astype(np.float64)
            case "log-probabilities":
                logarithms: NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=1)
                return logarithms
            case "probabilities":
                return softmax(logits)


def warn_of_batch_effects(predictor: Predictor, images: Float32Array) -> None:
    """Log if an image's answer has other bytes alone than among others, by rounding."""
    together = predictor.predict(images[:_BATCH_IMAGES]).logits
    alone = [predictor.predict(image[np.newaxis]).logits for image in images[:_BATCH_IMAGES]]
    largest = float(np.abs(together - np.concatenate(alone)).max())
    if largest > 0:
        logger.warning(
            "Warning: an operator of the network rounds otherwise in a batch: a logit of the same "
            "image differs by up to %.1g, so answers do not repeat byte for byte.",
            largest,
        )
