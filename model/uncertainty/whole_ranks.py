"""Whole numbers up to a share of a count, where the product has a rounding error.

100 * 0.55 is 55.00000000000001 in floating point and .05 * 180 is 8.999999999999998, which would
be rounded to the wrong side. Shares are typed with a few digits, so a product within 1e-9 of a
whole number is that number.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING_ERROR = 1e-9


def rank_from(share: ArrayLike, count: ArrayLike) -> NDArray[np.int64]:
    """Return the least whole number from 1 on that is at least share * count, elementwise."""
    product = np.multiply(share, count, dtype=np.float64)
    return np.maximum(1, np.ceil(product - _ROUNDING_ERROR)).astype(np.int64)


def rank_up_to(share: ArrayLike, count: ArrayLike) -> NDArray[np.int64]:
    """Return the largest whole number that is at most share * count, elementwise."""
    product = np.multiply(share, count, dtype=np.float64)
    return np.floor(product + _ROUNDING_ERROR).astype(np.int64)
