"""How near an image's features lie to those of a class. Knows no graph.

A class is a normal distribution of features around its mean, with one covariance for all classes
(Lee et al. 2018). From the distance to the nearest one the distance to the middle of all training
images is taken away, which leaves out the directions that say nothing of the classes (Ren et al.
2021).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Density:
    """Of F features in C classes, on D axes each; all float64."""

    axes: Floats
    """[F, 2D]: makes the covariance within a class the identity, and that of all images."""
    centres: Floats
    """[C, D]: the classes' means on the first axes."""
    middle: Floats
    """[D]: the mean of all on the last axes."""

    def nearness(self, features: NDArray[np.float32]) -> Floats:
        """Return half the squared distance to the middle minus that to the nearest class: [N].

        Args:
            features: float32 [N, F].
        """
        # One product a row: a matrix product would round differently in batches of another size.
        rows = features.astype(np.float64)
        places = np.array([row @ self.axes for row in rows]).reshape(len(rows), -1)
        inside, overall = np.split(places, 2, axis=1)
        nearest = np.square(inside[:, np.newaxis] - self.centres).sum(axis=-1).min(axis=1)
        nearness: Floats = (np.square(overall - self.middle).sum(axis=-1) - nearest) / 2
        return nearness
