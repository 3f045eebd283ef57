from typing import get_args

import pytest
import torch

from training.config import Augmentation
from training.data.augmentation import (
    build_augmentation,
    random_affine,
    random_crop,
    random_flip,
    random_resized_crop,
)
from training.data.shard import WHOLE, Shard


def images(count: int = 64, channels: int = 1, size: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).byte()


def test_random_flip_mirrors_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    before = images(400)
    after = random_flip(before)
    same = (after == before).flatten(1).all(1)
    mirrored = (after == before.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_random_crop_shifts_each_image_by_at_most_the_border() -> None:
    torch.manual_seed(0)
    before = images(200, channels=3)
    after = random_crop(before, 2, "constant")
    assert after.dtype == torch.uint8
    padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
    seen = set()
    for row in range(len(before)):
        matches = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(after[row], padded[row, :, down : down + 9, right : right + 9])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25


def test_random_crop_with_reflect_adds_no_black_pixels() -> None:
    bright = torch.full((20, 1, 8, 8), 200, dtype=torch.uint8)
    assert (random_crop(bright, 2, "reflect") == 200).all()
    assert (random_crop(bright, 2, "constant") == 0).any()


def test_random_affine_keeps_the_range_and_moves_pixels_little() -> None:
    torch.manual_seed(0)
    before = torch.zeros(50, 1, 28, 28)
    before[:, :, 10:18, 10:18] = 1.0
    after = random_affine(before, 2)
    assert after.min() >= 0
    assert after.max() <= 1 + 1e-6
    assert (after[:, :, :4].amax() == 0).all()
    assert ((after - before).abs().flatten(1).sum(1) > 0).all()


def test_build_augmentation_returns_floats_in_the_unit_range() -> None:
    before = images(8, channels=3)
    for name in ("none", "shift", "affine", "flip-crop"):
        after = build_augmentation(name, 2)(before)
        assert after.shape == before.shape
        assert after.dtype == torch.float32
        assert after.min() >= 0
        assert after.max() <= 1 + 1e-6
    torch.testing.assert_close(build_augmentation("none", 2)(before), before / 255)


def test_augmentation_draws_from_the_global_generator() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(build_augmentation("flip-crop", 2)(images()))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_random_resized_crop_enlarges_a_part_of_each_image() -> None:
    """On an image whose pixels are their own column, the columns of a crop are a shorter range."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(100, 1, 64, 64)
    after = random_resized_crop(ramp)[:, 0, 0]
    spans = after[:, -1] - after[:, 0]
    assert after.shape == (100, 64)
    assert (after.diff(dim=1) >= 0).all()
    assert 0.5 < spans.min() < spans.max() <= 1  # sqrt(.35 * 3/4) = .51
    assert spans.max() > 0.85


@pytest.mark.parametrize("name", get_args(Augmentation))
def test_processes_change_their_images_as_one_process_would(name: Augmentation) -> None:
    before = images(12, channels=3)

    def augment(shard: Shard) -> torch.Tensor:
        torch.manual_seed(5)
        return build_augmentation(name, 2.0, shard)(before[shard.rows(len(before))])

    parts = [augment(Shard(index, 3)) for index in range(3)]
    torch.testing.assert_close(torch.cat(parts), augment(WHOLE), rtol=0, atol=1e-6)
