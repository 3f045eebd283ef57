"""Finds where a curve of measurements first falls to a target."""

import math
from collections.abc import Sequence
from itertools import pairwise


def first_crossing(positions: Sequence[float], values: Sequence[float], target: float) -> float:
    """Return the position at which `values` first fall to `target`; NaN if they never do.

    Interpolates linearly between two measurements.

    Args:
        positions: of the measurements, ascending.
        values: measured there, as many.
        target: the value to reach.
    """
    if values[0] <= target:
        return positions[0]
    for (start, before), (end, after) in pairwise(zip(positions, values, strict=True)):
        if after <= target:
            return start + (before - target) / (before - after) * (end - start)
    return math.nan
