from pathlib import Path

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.inference.predictor import open_tested
from training.data.dataset import Split
from training.evaluation.corruptions import (
    CORRUPTIONS,
    Corruption,
    blur,
    corruption_curves,
    noise,
    rotation,
)

IMAGES = np.random.default_rng(0).integers(60, 190, (20, 3, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda each: each.name)
def test_only_no_strength_changes_nothing(corruption: Corruption) -> None:
    spoilt = [corruption.apply(IMAGES, strength) for strength in corruption.strengths]
    np.testing.assert_array_equal(spoilt[0], IMAGES)
    moved = [np.abs(each.astype(float) - IMAGES).mean() for each in spoilt]
    assert all(each.shape == IMAGES.shape and each.dtype == np.uint8 for each in spoilt)
    assert min(moved[1:]) > 0.5


def test_noise_has_the_stated_deviation_and_repeats() -> None:
    grey = np.full((50, 1, 16, 16), 128, np.uint8)
    spoilt = noise(grey, 0.1)
    assert spoilt.std() == pytest.approx(25.5, rel=0.03)
    np.testing.assert_array_equal(spoilt, noise(grey, 0.1))


def test_a_quarter_turn_is_numpys() -> None:
    np.testing.assert_array_equal(rotation(IMAGES, 90), np.rot90(IMAGES, axes=(2, 3)))


def test_blur_keeps_channels_and_images_apart() -> None:
    image = np.zeros((2, 3, 16, 16), np.uint8)
    image[1, 2] = 200
    spoilt = blur(image, 10)
    assert spoilt[0].max() == spoilt[1, :2].max() == 0
    np.testing.assert_array_equal(spoilt[1, 2], 200)


def test_a_real_bundle_does_worse_and_finds_it_less_typical(
    bundle_folder: Path, held_out: Split
) -> None:
    found = corruption_curves(open_tested(open_bundle(bundle_folder)), held_out)
    assert [course.corruption for course in found] == list(CORRUPTIONS)
    for course in found:
        assert course.accuracy[0] > 0.9
        assert course.accuracy[-1] < course.accuracy[0] - 0.2
        assert course.typicality[-1] < course.typicality[0] - 0.2
        assert len(course.mutual_information) == len(course.corruption.strengths)
