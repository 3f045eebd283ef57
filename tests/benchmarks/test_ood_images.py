import numpy as np
import pytest

from benchmarks.ood.ood_images import DIMMING, MAX_IMAGES, Images, ood_images


@pytest.fixture(scope="module")
def split() -> Images:
    return np.random.default_rng(0).integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)


@pytest.fixture(scope="module")
def kinds(split: Images) -> dict[str, Images]:
    return ood_images(split, {"other": split[:0:-1]})


def test_every_kind_has_images_of_the_shape_of_the_test_images(
    split: Images, kinds: dict[str, Images]
) -> None:
    assert next(iter(kinds)) == "other"
    for name, images in kinds.items():
        assert images.dtype == np.uint8, name
        assert images.shape[1:] == split.shape[1:], name
        assert 0 < len(images) <= MAX_IMAGES, name


def test_ood_images_have_the_same_bytes_each_time(split: Images, kinds: dict[str, Images]) -> None:
    again = ood_images(split, {"other": split[:0:-1]})
    assert all(np.array_equal(images, again[name]) for name, images in kinds.items())


def test_another_seed_draws_other_noise(split: Images, kinds: dict[str, Images]) -> None:
    other = ood_images(split, {}, seed=1)
    assert not np.array_equal(other["uniform noise"], kinds["uniform noise"])


def test_more_images_than_the_limit_are_drawn_from_all_of_them() -> None:
    numbers = np.arange(2 * MAX_IMAGES, dtype=np.int64)
    many = np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8)[:, None, None]
    drawn = ood_images(many[:2], {"other": many})["other"].astype(np.int64)
    chosen = np.unique(drawn[:, 0, 0, 0] * 256 + drawn[:, 0, 0, 1])
    assert len(drawn) == len(chosen) == MAX_IMAGES
    assert chosen.max() > 1.9 * MAX_IMAGES


def test_blanks_have_every_grey_level_once(kinds: dict[str, Images]) -> None:
    blanks = kinds["blank, 256 grey levels"].reshape(256, -1)
    assert (blanks == np.arange(256)[:, np.newaxis]).all()


def test_gaussian_noise_has_its_standard_deviation(kinds: dict[str, Images]) -> None:
    noise = kinds["Gaussian noise, std 30"].astype(np.float64)
    assert noise.mean() == pytest.approx(127.5, abs=1)
    assert noise.std() == pytest.approx(30, abs=1)


def test_shuffling_keeps_the_pixels_of_each_image_with_their_channels(
    split: Images, kinds: dict[str, Images]
) -> None:
    def sorted_pixels(images: Images) -> list[list[tuple[int, ...]]]:
        pixels = images.reshape(len(images), 3, -1).transpose(0, 2, 1).tolist()
        return sorted(sorted(map(tuple, image)) for image in pixels)

    assert sorted_pixels(kinds["pixels shuffled"]) == sorted_pixels(split)


def test_altered_images_are_made_of_the_same_test_images(kinds: dict[str, Images]) -> None:
    originals = 255 - kinds["inverted"]
    assert np.array_equal(kinds["upside down"][:, :, ::-1], originals)
    assert np.abs(kinds[f"dimmed to {DIMMING:g}"] - originals * DIMMING).max() <= 0.5
    mean = kinds["mean of two"].astype(np.float64)
    assert mean[1].mean() == pytest.approx(originals[:2].mean(), abs=0.5)
