"""How near an image's features lie to those of a class. Knows no graph.

A class is a normal distribution of features around its mean, with one covariance for all classes
(Lee et al. 2018). From the distance to the nearest one the distance to the middle of all training
images is taken away, which leaves out the directions that say nothing of the classes (Ren et al.
2021).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class RelativeMahalanobis:
    """Of F features in C classes, on D axes each; all float64."""

    axes: Floats
    """[F, 2D]: makes the covariance within a class the identity, and that of all images."""
    centres: Floats
    """[C, D]: the classes' means on the first axes."""
    middle: Floats
    """[D]: the mean of all on the last axes."""

    def score(self, features: NDArray[np.float32]) -> Floats:
        """Return half the squared distance to the middle minus that to the nearest class: [N].

        With both multiplied out it is |overall|^2 / 2 - |inside|^2 / 2 plus the largest of C
        functions that are linear in the features, so one product with `_directions` does it all.

        Args:
            features: float32 [N, F].
        """
        # One product a row: a matrix product would round differently in batches of another size.
        places = np.vecmat(features, self._directions)
        size = len(self.middle)
        inside, overall = places[:, :size], places[:, size : 2 * size]
        squares = np.vecdot(overall, overall) - np.vecdot(inside, inside)
        nearest = np.maximum.reduce(places[:, 2 * size :] + self._constants, axis=1)
        nearness: Floats = np.add(squares / 2, nearest, dtype=np.float64)
        return nearness

    @cached_property
    def _directions(self) -> Singles:
        """[F, 2D + C]: the axes, and each class's linear function."""
        inside, overall = np.split(self.axes, 2, axis=1)
        linear = inside @ self.centres.T - (overall @ self.middle)[:, np.newaxis]
        return np.concatenate([self.axes, linear], axis=1).astype(np.float32)

    @cached_property
    def _constants(self) -> Singles:
        """[C]: what each class's function adds."""
        squares = np.square(self.middle).sum() - np.square(self.centres).sum(axis=1)
        constants: Singles = (squares / 2).astype(np.float32)
        return constants
