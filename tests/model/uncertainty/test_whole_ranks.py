"""Ranks against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from model.uncertainty.whole_ranks import rank_from, rank_up_to

COUNTS = np.arange(1, 5_001)


@pytest.mark.parametrize("share", ["0.05", "0.1", "0.55", "0.9", "0.99", "0.999"])
def test_ranks_are_those_of_exact_fractions(share: str) -> None:
    products = [Fraction(share) * int(count) for count in COUNTS]
    assert rank_from(float(share), COUNTS).tolist() == [math.ceil(each) for each in products]
    assert rank_up_to(float(share), COUNTS).tolist() == [math.floor(each) for each in products]
