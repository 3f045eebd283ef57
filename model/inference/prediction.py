"""The outputs of the deterministic pass of a bundle's network. Knows no ONNX Runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.calibration import Calibrator
from model.uncertainty.uncertainty_measures import softmax

Float32Array = NDArray[np.float32]


@dataclass
class Prediction:
    """The outputs of the deterministic pass for N images over K classes.

    Attributes:
        logits: float32 [N, K], not divided by the temperature.
        features: float32 [N, F], the output of the trunk.
        classification: calibrated probabilities, float32 [N, K], and the labels, int64 [N].
        temperature: divides the logits in the softmax.
        ood_scores: out-of-distribution scores, float32 [N], higher for more typical images; None:
            the graph computes none.
        calibrator: of the bundle; None: uncalibrated.
    """

    logits: Float32Array
    features: Float32Array
    classification: tuple[Float32Array, NDArray[np.int64]]
    temperature: float = 1.0
    ood_scores: Float32Array | None = None
    calibrator: Calibrator | None = None
    _source: "tuple[Prediction, slice | NDArray[np.int64]] | None" = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits over the temperature, float64 [N, K]."""
        if self._source is None:
            return softmax(self.logits, self.temperature)
        whole, rows = self._source
        return whole.probabilities[rows]  # computed once for all its parts

    @cached_property
    def typicality(self) -> NDArray[np.float64]:
        """Conformal p-value of each image among the validation images, [N]; NaN: uncalibrated."""
        if self._source is not None:
            whole, rows = self._source
            return whole.typicality[rows]
        if self.calibrator is None or self.ood_scores is None:
            return np.full(len(self.logits), np.nan)
        return self.calibrator.typicality(self.ood_scores)

    def take(self, rows: slice | NDArray[np.int64]) -> "Prediction":
        """Return some of the rows."""
        probabilities, labels = self.classification
        return Prediction(
            self.logits[rows],
            self.features[rows],
            (probabilities[rows], labels[rows]),
            self.temperature,
            None if self.ood_scores is None else self.ood_scores[rows],
            self.calibrator,
            (self, rows),
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[Prediction]") -> "Prediction":
        """Return the rows of several predictions, in order."""
        scores = [part.ood_scores for part in parts if part.ood_scores is not None]
        probabilities, labels = zip(*[part.classification for part in parts], strict=True)
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.features for part in parts]),
            (np.concatenate(probabilities), np.concatenate(labels)),
            parts[0].temperature,
            np.concatenate(scores) if len(scores) == len(parts) else None,
            parts[0].calibrator,
        )
