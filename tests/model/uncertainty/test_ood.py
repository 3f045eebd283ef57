import numpy as np
import pytest

from model.uncertainty.ood import RelativeMahalanobis


def test_nearness_compares_the_nearest_class_with_the_middle() -> None:
    twice = np.concatenate([np.eye(2), np.eye(2)], axis=1)
    density = RelativeMahalanobis(twice, np.array([[2.0, 3.0], [10.0, 10.0]]), np.array([6.0, 6.0]))
    features = np.array([[2.0, 3.0], [6.0, 6.0], [11.0, 10.0]], np.float32)
    assert density.score(features).tolist() == [12.5, -12.5, 20.0]


def test_nearness_is_as_exact_as_the_distances_themselves() -> None:
    generator = np.random.default_rng(1)
    features = 5 + generator.random((50, 96)).astype(np.float32)
    axes, centres = generator.normal(size=(96, 192)), generator.normal(size=(10, 96))
    middle = generator.normal(size=96)
    inside, overall = np.split(features.astype(np.float64) @ axes, 2, axis=1)
    nearest = np.square(inside[:, np.newaxis] - centres).sum(axis=-1).min(axis=1)
    expected = (np.square(overall - middle).sum(axis=-1) - nearest) / 2
    scale = np.square(overall).sum(axis=-1).max()
    nearness = RelativeMahalanobis(axes, centres, middle).score(features)
    np.testing.assert_allclose(nearness, expected, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_row_has_the_same_bytes_alone_and_in_a_batch(size: int) -> None:
    generator = np.random.default_rng(0)
    features = generator.random((50, 96)).astype(np.float32)
    axes, centres = generator.normal(size=(96, 192)), generator.normal(size=(10, 96))
    density = RelativeMahalanobis(axes, centres, np.ones(96))
    whole = density.score(features)
    for start in range(0, 50, size):
        part = density.score(features[start : start + size])
        np.testing.assert_array_equal(part, whole[start : start + size])
