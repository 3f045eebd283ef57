import numpy as np
import pytest

from model.novelty import Density


def test_nearness_compares_the_nearest_class_with_the_middle() -> None:
    twice = np.concatenate([np.eye(2), np.eye(2)], axis=1)
    density = Density(twice, np.array([[2.0, 3.0], [10.0, 10.0]]), np.array([6.0, 6.0]))
    features = np.array([[2.0, 3.0], [6.0, 6.0], [11.0, 10.0]], np.float32)
    assert density.nearness(features).tolist() == [12.5, -12.5, 20.0]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_row_has_the_same_bytes_alone_and_in_a_batch(size: int) -> None:
    generator = np.random.default_rng(0)
    features = generator.random((50, 96)).astype(np.float32)
    axes, centres = generator.normal(size=(96, 192)), generator.normal(size=(10, 96))
    density = Density(axes, centres, np.ones(96))
    whole = density.nearness(features)
    for start in range(0, 50, size):
        part = density.nearness(features[start : start + size])
        np.testing.assert_array_equal(part, whole[start : start + size])
