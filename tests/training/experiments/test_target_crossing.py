import math

import pytest

from training.experiments.target_crossing import first_crossing


def test_first_crossing_interpolates_between_measurements() -> None:
    assert first_crossing([0, 0.5, 1, 1.5], [0.9, 0.5, 0.3, 0.2], 0.25) == pytest.approx(1.25)
    assert first_crossing([0, 0.5], [0.9, 0.25], 0.25) == pytest.approx(0.5)


def test_first_crossing_is_the_first_position_of_a_curve_that_starts_at_the_target() -> None:
    assert first_crossing([20, 40], [0.1, 0.3], 0.1) == 20


def test_first_crossing_ignores_that_the_curve_rises_again() -> None:
    assert first_crossing([0, 1, 2, 3], [0.4, 0.2, 0.4, 0.1], 0.3) == pytest.approx(0.5)


def test_first_crossing_is_nan_where_the_target_is_not_reached() -> None:
    assert math.isnan(first_crossing([0, 1], [0.9, 0.5], 0.25))
