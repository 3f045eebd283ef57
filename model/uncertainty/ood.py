"""Out-of-distribution score of an image: relative Mahalanobis distance of its features.

Each class is modelled as a normal distribution of features around its mean, with one covariance for
all classes (Lee et al. 2018). The score subtracts the distance to the nearest class from the
distance to the mean of all training images, which cancels directions that do not separate classes
(Ren et al. 2021). This module knows no graph.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class RelativeMahalanobis:
    """The fitted distributions of F features in C classes, with D axes each; all float64."""

    axes: Float64Array
    """[F, 2D]: D axes that whiten the covariance within a class, then D that whiten that of all."""
    centres: Float64Array
    """[C, D]: the means of the classes on the first D axes."""
    middle: Float64Array
    """[D]: the mean of all images on the last D axes."""

    def score(self, features: Float32Array) -> Float64Array:
        """Return half of the squared distance to the middle minus that to the nearest class: [N].

        A higher score is more typical of the training images. Multiplied out, it is
        |background|^2 / 2 - |within|^2 / 2 plus the largest of C functions that are linear in the
        features, so one product with `_directions` computes all of it.

        Args:
            features: float32 [N, F].
        """
        # One product a row: a matrix product would round differently in batches of another size.
        projections = np.vecmat(features, self._directions)
        size = len(self.middle)
        within, background = projections[:, :size], projections[:, size : 2 * size]
        squares = np.vecdot(background, background) - np.vecdot(within, within)
        nearest = np.maximum.reduce(projections[:, 2 * size :] + self._constants, axis=1)
        scores: Float64Array = np.add(squares / 2, nearest, dtype=np.float64)
        return scores

    @cached_property
    def _directions(self) -> Float32Array:
        """[F, 2D + C]: the axes, then the linear function of each class."""
        within, background = np.split(self.axes, 2, axis=1)
        linear = within @ self.centres.T - (background @ self.middle)[:, np.newaxis]
        return np.concatenate([self.axes, linear], axis=1).astype(np.float32)

    @cached_property
    def _constants(self) -> Float32Array:
        """[C]: the constant term of each class's function."""
        squares = np.square(self.middle).sum() - np.square(self.centres).sum(axis=1)
        constants: Float32Array = (squares / 2).astype(np.float32)
        return constants
