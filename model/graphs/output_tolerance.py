"""By how much outputs may differ, which float32 rounds in proportion to their size."""

import numpy as np
from numpy.typing import NDArray

_ORDINARY_OUTPUT = 10.0
"""Up to this size of the largest one a tolerance is absolute: trained networks have such logits.
Those of adopted networks, and with a dropout near 1, have any size."""


def scaled_tolerance(tolerance: float, outputs: NDArray[np.floating]) -> float:
    """Return a tolerance that is relative to the largest |output|, where that is above 10."""
    return tolerance * max(1.0, float(np.abs(outputs).max()) / _ORDINARY_OUTPUT)
