from pathlib import Path

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.inference.predictor_loading import load_predictor
from training.data.dataset import Split
from training.evaluation.corruptions import (
    CORRUPTIONS,
    Corruption,
    corruption_curves,
    gaussian_blur,
    gaussian_noise,
    rotate,
)

IMAGES = np.random.default_rng(0).integers(60, 190, (20, 3, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda each: each.name)
def test_corruption_changes_images_except_at_severity_zero(corruption: Corruption) -> None:
    corrupted = [corruption.apply(IMAGES, strength) for strength in corruption.severities]
    np.testing.assert_array_equal(corrupted[0], IMAGES)
    differences = [np.abs(each.astype(float) - IMAGES).mean() for each in corrupted]
    assert all(each.shape == IMAGES.shape and each.dtype == np.uint8 for each in corrupted)
    assert min(differences[1:]) > 0.5


def test_gaussian_noise_has_its_standard_deviation_and_is_repeatable() -> None:
    grey = np.full((50, 1, 16, 16), 128, np.uint8)
    corrupted = gaussian_noise(grey, 0.1)
    assert corrupted.std() == pytest.approx(25.5, rel=0.03)
    np.testing.assert_array_equal(corrupted, gaussian_noise(grey, 0.1))


def test_rotate_by_90_degrees_equals_rot90() -> None:
    np.testing.assert_array_equal(rotate(IMAGES, 90), np.rot90(IMAGES, axes=(2, 3)))


def test_gaussian_blur_keeps_channels_and_images_apart() -> None:
    image = np.zeros((2, 3, 16, 16), np.uint8)
    image[1, 2] = 200
    corrupted = gaussian_blur(image, 10)
    assert corrupted[0].max() == corrupted[1, :2].max() == 0
    np.testing.assert_array_equal(corrupted[1, 2], 200)


def test_corruption_curves_of_a_real_bundle_fall(bundle_folder: Path, held_out: Split) -> None:
    curves = corruption_curves(load_predictor(open_bundle(bundle_folder)), held_out)
    assert [curve.corruption for curve in curves] == list(CORRUPTIONS)
    for curve in curves:
        assert curve.accuracy[0] > 0.9
        assert curve.accuracy[-1] < curve.accuracy[0] - 0.2
        assert curve.typicality[-1] < curve.typicality[0] - 0.2
        assert len(curve.mutual_information) == len(curve.corruption.severities)
