"""Kinds of out-of-distribution (OOD) images: other data sets, noise, blanks, altered test images.

The same seed gives the same images. Knows no bundle.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAX_IMAGES = 2_000
"""Images of each kind; more would mostly cost time, since 64 samples are drawn for each."""
NOISE_STDS = (10, 30, 100)
"""Standard deviations of Gaussian noise, in grey levels of 0..255."""
DIMMING = 0.3
_LEVELS = 256
_MIDDLE = 127.5

Images = NDArray[np.uint8]
"""[N, C, H, W]."""


def ood_images(test: Images, others: Mapping[str, Images], seed: int = 0) -> dict[str, Images]:
    """Return at most MAX_IMAGES images of every kind, by its name.

    Args:
        test: test images of the data set that networks were trained on; at least 2.
        others: test images of other data sets by name, of the same shape.
        seed: of the draws of images and noise.
    """
    kinds = {name: _draw(images, _generator(seed)) for name, images in others.items()}
    shape = test.shape[1:]
    return kinds | synthetic_images(shape, seed) | altered_images(test, seed)


def synthetic_images(shape: tuple[int, ...], seed: int) -> dict[str, Images]:
    """Return noise, and blanks of all 256 grey levels; `shape` is (C, H, W)."""
    size = (MAX_IMAGES, *shape)
    kinds = {"uniform noise": _generator(seed).integers(0, _LEVELS, size, dtype=np.uint8)}
    for std in NOISE_STDS:
        noise = _generator(seed).normal(_MIDDLE, std, size)
        kinds[f"Gaussian noise, std {std}"] = _to_pixels(noise)
    levels = np.arange(_LEVELS, dtype=np.uint8).reshape(-1, 1, 1, 1)
    kinds["blank, 256 grey levels"] = np.broadcast_to(levels, (_LEVELS, *shape)).copy()
    return kinds


def altered_images(test: Images, seed: int) -> dict[str, Images]:
    """Return test images with their content inverted, shuffled, turned, dimmed or mixed."""
    drawn = _draw(test, _generator(seed))
    return {
        "inverted": 255 - drawn,
        "pixels shuffled": _shuffle_pixels(drawn, _generator(seed)),
        "upside down": drawn[:, :, ::-1].copy(),
        f"dimmed to {DIMMING:g}": _to_pixels(drawn * DIMMING),
        "mean of two": _to_pixels((drawn + np.roll(drawn, 1, axis=0).astype(np.float64)) / 2),
    }


def _draw(images: Images, generator: np.random.Generator) -> Images:
    """Return at most MAX_IMAGES images, in random order."""
    return images[generator.permutation(len(images))[:MAX_IMAGES]]


def _shuffle_pixels(images: Images, generator: np.random.Generator) -> Images:
    """Move the pixels of every image, each with all its channels, to random places."""
    count, channels = images.shape[:2]
    flat = images.reshape(count, channels, -1)
    order = generator.permuted(np.tile(np.arange(flat.shape[2]), (count, 1)), axis=1)
    shuffled = np.take_along_axis(flat, order[:, np.newaxis], axis=2)
    return shuffled.reshape(images.shape)


def _to_pixels(values: NDArray[np.floating]) -> Images:
    return np.clip(np.round(values), 0, _LEVELS - 1).astype(np.uint8)


def _generator(seed: int) -> np.random.Generator:
    """Return a new generator, so that no kind's images depend on another kind."""
    return np.random.Generator(np.random.PCG64(seed))
