import numpy as np
import pytest

from model.uncertainty.ood import RelativeMahalanobis


def test_relative_mahalanobis_compares_the_nearest_class_with_the_middle() -> None:
    twice = np.concatenate([np.eye(2), np.eye(2)], axis=1)
    centres, middle = np.array([[2.0, 3.0], [10.0, 10.0]]), np.array([6.0, 6.0])
    fitted = RelativeMahalanobis(twice, centres, middle)
    features = np.array([[2.0, 3.0], [6.0, 6.0], [11.0, 10.0]], np.float32)
    assert fitted.score(features).tolist() == [12.5, -12.5, 20.0]


def test_relative_mahalanobis_is_as_exact_as_the_distances() -> None:
    generator = np.random.default_rng(1)
    features = 5 + generator.random((50, 96)).astype(np.float32)
    axes, centres = generator.normal(size=(96, 192)), generator.normal(size=(10, 96))
    middle = generator.normal(size=96)
    within, background = np.split(features.astype(np.float64) @ axes, 2, axis=1)
    nearest = np.square(within[:, np.newaxis] - centres).sum(axis=-1).min(axis=1)
    expected = (np.square(background - middle).sum(axis=-1) - nearest) / 2
    scale = np.square(background).sum(axis=-1).max()
    scores = RelativeMahalanobis(axes, centres, middle).score(features)
    np.testing.assert_allclose(scores, expected, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_relative_mahalanobis_gives_a_row_the_same_bytes_in_any_batch(size: int) -> None:
    generator = np.random.default_rng(0)
    features = generator.random((50, 96)).astype(np.float32)
    axes, centres = generator.normal(size=(96, 192)), generator.normal(size=(10, 96))
    fitted = RelativeMahalanobis(axes, centres, np.ones(96))
    whole = fitted.score(features)
    for start in range(0, 50, size):
        part = fitted.score(features[start : start + size])
        np.testing.assert_array_equal(part, whole[start : start + size])
