"""Summaries of sampled logits that no bundle gave, through graphs made for their classes."""

import numpy as np
from numpy.typing import NDArray

from model.uncertainty import uncertainty_measures
from model.uncertainty.uncertainty_measures import Uncertainty
from training.export.mc_statistics_graph import mc_statistics_of


def summarise(logits: NDArray[np.float32]) -> Uncertainty:
    """Summarise the logits of T random samples, float32 [N, T, K]."""
    return uncertainty_measures.summarise(mc_statistics_of(logits.shape[2]), logits)


def summarise_points(logits: NDArray[np.floating]) -> Uncertainty:
    """Summarise logits [N, T, K] at T quadrature points."""
    return uncertainty_measures.summarise_points(mc_statistics_of(logits.shape[2]), logits)
