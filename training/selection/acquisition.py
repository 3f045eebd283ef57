"""Acquisition functions: how much each image of a pool is worth labelling, by itself.

BatchBALD, which weighs images together, is in `training.selection.batchbald`. Knows no network.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.selection.pool_scores import PoolScores
from training.selection.selection_config import BATCHBALD, Method


def acquisition_values(method: Method, scores: PoolScores, seed: int) -> NDArray[np.float64]:
    """Return the worth of each image, float64 [N]; higher is more worth labelling.

    - `bald`: the mutual information of label and mask, nats (Houlsby et al. 2011; Gal, Islam &
      Ghahramani 2017). It is also the worth of the first image of `batchbald`, and what its
      shortlist is made by.
    - `entropy`: the predictive entropy, nats (Shannon 1948; Settles 2009, section 3.1).
    - `variation-ratio`: the share of samples with another label (Freeman 1965).
    - `typical`: mutual information times typicality, the information density of Settles & Craven
      2008 with a conformal p-value in the place of their mean similarity to the pool.
    - `random`: a number that the seed draws, 0..1; what every other method has to beat.

    Args:
        method: its name.
        scores: of the N images.
        seed: of `random`.
    """
    functions: dict[Method, Callable[[], NDArray[np.float64]]] = {
        BATCHBALD: lambda: scores.mutual_information,
        "bald": lambda: scores.mutual_information,
        "entropy": lambda: scores.predictive_entropy,
        "variation-ratio": lambda: scores.variation_ratio,
        "typical": lambda: scores.mutual_information * scores.typicality,
        "random": lambda: np.random.default_rng(seed).random(len(scores)),
    }
    return functions[method]()


def rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows from the highest value to the lowest, the first of equal ones first."""
    return np.argsort(-values, kind="stable").astype(np.int64)
