"""Outputs of networks for images that they were not trained on, from which a bundle is calibrated.

Knows no graph and no fit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.dropout.sampling_methods import FixedSamples
from model.uncertainty.uncertainty_measures import softmax, summarise
from training.evaluation.metrics import Answers
from training.export.mc_statistics_graph import mc_statistics_of


@dataclass(frozen=True)
class HeldOut:
    """The outputs for N labelled images, in K classes."""

    labels: NDArray[np.int64]
    """[N]."""
    logits: NDArray[np.float32]
    """[N, K], of the deterministic pass."""
    features: NDArray[np.float32]
    """[N, F]."""
    ood_scores: NDArray[np.float32] | None
    """[N]; None where none are fitted."""
    sampling: FixedSamples
    sample: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    """Maps rows, int64 [M], to their logits sampled as `sampling` says: [M, samples, K]."""

    def __len__(self) -> int:
        return len(self.labels)

    def answers(self, temperature: float, sampled_temperature: float) -> Answers:
        """Return the probabilities and the uncertainties at these temperatures."""
        rows = np.arange(len(self))
        statistics = mc_statistics_of(self.logits.shape[1])
        uncertainty = summarise(statistics, self.sample(rows), sampled_temperature)
        return Answers(softmax(self.logits, temperature), uncertainty)
