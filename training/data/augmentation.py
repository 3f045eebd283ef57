"""Random augmentation of whole batches of training images, on the device that the tensors are on.

Knows no data set. Every function maps a tensor [N, C, H, W] to one of the same shape. Random
numbers come from torch's global generator, which the training module seeds for each epoch. Where
several processes share a batch, each has one `shard` of it and draws the numbers of all.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from training.config import Augmentation
from training.data.shard import WHOLE, Shard

_MAX_DEGREES = 12.0
_MAX_SCALE = 0.12
_CROP_AREAS = (0.35, 1.0)
_CROP_ASPECTS = (3 / 4, 4 / 3)


def build_augmentation(
    name: Augmentation, shift: float, shard: Shard = WHOLE
) -> Callable[[Tensor], Tensor]:
    """Return the named augmentation: uint8 images [N, C, H, W] -> float32 in 0..1, same shape.

    Args:
        name: of the augmentation.
        shift: largest translation, in pixels; crops move by whole ones, at least one.
        shard: of each batch, what the images are.
    """
    border = max(1, round(shift))
    match name:
        case "none":
            return _to_unit_range
        case "shift":
            return lambda images: _to_unit_range(random_crop(images, border, "constant", shard))
        case "affine":
            return lambda images: random_affine(_to_unit_range(images), shift, shard)
        case "flip-crop":
            return lambda images: _to_unit_range(
                random_crop(random_flip(images, shard), border, "reflect", shard)
            )
        case "photographs":
            return lambda images: random_resized_crop(
                _to_unit_range(random_flip(images, shard)), shard
            )


def random_flip(images: Tensor, shard: Shard = WHOLE) -> Tensor:
    """Mirror each image [C, H, W] left to right with probability 1/2; any dtype."""
    draws = shard.draw(lambda count: torch.rand(count, 1, 1, 1, device=images.device), len(images))
    return torch.where(draws < 0.5, images.flip(-1), images)


def random_crop(images: Tensor, border: int, mode: str, shard: Shard = WHOLE) -> Tensor:
    """Pad each image and crop it at a random offset to its former size; keeps the dtype.

    Args:
        images: [N, C, H, W].
        border: padding on each side, in pixels; at most H - 1 and W - 1 are used.
        mode: content of the padding, "constant" (black) or "reflect".
        shard: of the batch, what `images` are.
    """
    count, channels, height, width = images.shape
    device = images.device
    border = min(border, height - 1, width - 1)
    padded = functional.pad(images.float(), (border,) * 4, mode=mode).to(images.dtype)
    offsets = shard.draw(
        lambda whole: torch.randint(0, 2 * border + 1, (2, whole, 1), device=device), count, dim=1
    )
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    return padded[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def random_affine(images: Tensor, shift: float, shard: Shard = WHOLE) -> Tensor:
    """Rotate, scale and translate each image by a random affine map, with bilinear interpolation.

    Rotates by at most 12 degrees and scales by at most 12 %; pixels from outside are black.

    Args:
        images: float [N, C, H, W].
        shift: largest translation, in pixels.
        shard: of the batch, what `images` are.
    """
    height, width = images.shape[2:]
    draws = _four_draws(images, shard) * 2 - 1
    angle = draws[0] * math.radians(_MAX_DEGREES)
    scale = 1 + draws[1] * _MAX_SCALE
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    right, down = draws[2] * (2 * shift / width), draws[3] * (2 * shift / height)
    rows = [torch.stack([cosine, -sine, right], -1), torch.stack([sine, cosine, down], -1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def random_resized_crop(images: Tensor, shard: Shard = WHOLE) -> Tensor:
    """Cut a random box out of each image and resize it to its former size, bilinearly.

    A box has 35 to 100 % of the area and an aspect of 3/4 to 4/3, as in the views of a frozen
    backbone (Szegedy et al. 2015, whose 8 % are meant for a training from scratch). One that is
    wider or higher than the image is cut to it.

    Args:
        images: float [N, C, H, W].
        shard: of the batch, what `images` are.
    """
    area, aspect, right, down = _four_draws(images, shard)
    smallest, largest = _CROP_AREAS
    area = smallest + area * (largest - smallest)
    narrowest, widest = (math.log(ratio) for ratio in _CROP_ASPECTS)
    aspect = torch.exp(narrowest + aspect * (widest - narrowest))
    width = torch.sqrt(area * aspect).clamp(max=1)
    height = torch.sqrt(area / aspect).clamp(max=1)
    zeros = torch.zeros_like(width)
    rows = [
        torch.stack([width, zeros, (2 * right - 1) * (1 - width)], -1),
        torch.stack([zeros, height, (2 * down - 1) * (1 - height)], -1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _four_draws(images: Tensor, shard: Shard) -> Tensor:
    """Return four uniform numbers in 0..1 for each image, [4, N]."""
    return shard.draw(lambda count: torch.rand(4, count, device=images.device), len(images), dim=1)


def _to_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255
