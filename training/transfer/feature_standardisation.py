"""Brings the features of an unknown network to one scale, unit by unit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LENGTH = 15.0
"""Root mean square length of EfficientNet-Lite0's features of a photograph, with which the learning
rate and the number of steps of heads were chosen."""
_SMALLEST_DEVIATION = 0.1
"""Of a unit, as a share of the root mean square one: units that hardly vary are not blown up."""


@dataclass(frozen=True)
class Standardisation:
    """y = (x - mean) * factor, for each unit."""

    mean: NDArray[np.float32]
    """[F]."""
    factor: NDArray[np.float32]
    """[F]."""

    @classmethod
    def fit(cls, features: NDArray[np.float32]) -> "Standardisation":
        """Fit it to features [N, F], which then have mean 0 and about equal deviations."""
        deviation = features.std(axis=0, dtype=np.float64)
        typical = float(np.sqrt(np.mean(deviation**2))) or 1.0
        limited = np.maximum(deviation, _SMALLEST_DEVIATION * typical)
        factor = _LENGTH / np.sqrt(features.shape[1]) / limited
        mean = features.mean(axis=0, dtype=np.float64)
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return standardised features of the same shape, [..., F]."""
        standardised: NDArray[np.float32] = (features - self.mean) * self.factor
        return standardised
