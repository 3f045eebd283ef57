"""Cuts random views out of photographs, from the original image and not from a small copy of it.

The views of a file depend on its content and on their number alone, so they are the same in every
run. Knows no network.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.images.preprocessing import InputSpec, open_all
from training.data.image_inspection import decode_image

_AREAS = (0.35, 1.0)
"""Smallest and largest share of the image's area in a view. Below a third, many views would miss
the object (torchvision's 0.08 is meant for a training from scratch)."""
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
VIEWS_VERSION = 2
"""To be raised when the views of a file change, so that cached features are not used."""


def random_views(file: Path, count: int, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Return `count` random resized crops of a file, half of them mirrored: uint8 [count, C, H, W].

    Area and aspect are drawn as in Szegedy et al. 2015.

    Args:
        file: an image that can be decoded.
        count: number of views.
        spec: size and channels of a view.
        max_pixels: limit on the height x width of the image.

    Raises:
        InputError: the file cannot be decoded.
    """
    data = file.read_bytes()
    pixels = _decode_large(data, spec, max_pixels)
    grey = spec.channels == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
    generator = np.random.Generator(np.random.PCG64(seed))
    return np.stack([_random_view(image, spec, generator) for _ in range(count)])


def _decode_large(data: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Decode the whole image, upright, at its own aspect: its shorter side at most twice `spec`."""
    (opened,) = open_all([data], max_pixels).images
    width, height = opened.upright_size
    scale = min(1.0, 2 * max(spec.height, spec.width) / min(width, height))
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    whole = InputSpec(channels=spec.channels, resize="stretch", **size)
    return decode_image(data, whole, max_pixels)


def _random_view(
    image: Image.Image, spec: InputSpec, generator: np.random.Generator
) -> NDArray[np.uint8]:
    left, top, width, height = _random_box(image.width, image.height, generator)
    box = (left, top, left + width, top + height)
    view = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(view, np.uint8)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _random_box(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a random box; the largest square if none fits."""
    for _ in range(_ATTEMPTS):
        area = generator.uniform(*_AREAS) * width * height
        narrowest, widest = _ASPECTS
        aspect = math.exp(generator.uniform(math.log(narrowest), math.log(widest)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left = int(generator.integers(0, width - wide + 1))
            top = int(generator.integers(0, height - high + 1))
            return left, top, wide, high
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
