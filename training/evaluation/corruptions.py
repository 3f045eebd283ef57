"""Noise, rotation and blur of rising strength, and what they do to a bundle's answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.inference.predictor import Predictor
from training.data.dataset import Split
from training.evaluation.metrics import answers

SEED = 0
_IMAGES = 500

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Corruption:
    """A way to spoil images uint8 [N, C, H, W], at each of some strengths."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Images, float], Images]


@dataclass(frozen=True)
class CorruptionCurve:
    """What becomes of the answers, at each strength of one corruption."""

    corruption: Corruption
    accuracy: list[float]
    confidence: list[float]
    mutual_information: list[float]
    typicality: list[float]
    """NaN where the bundle is uncalibrated."""


def noise(images: Images, strength: float) -> Images:
    """Add normal noise with a standard deviation of `strength` of the range."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.standard_normal(images.shape, dtype=np.float32)
    return _pixels(images + 255 * strength * drawn)


def rotation(images: Images, degrees: float) -> Images:
    """Turn around the middle, anticlockwise; black where nothing was."""
    pixels = images.astype(np.float32)
    return _pixels(ndimage.rotate(pixels, degrees, axes=(3, 2), reshape=False, order=1))


def blur(images: Images, strength: float) -> Images:
    """Blur with a Gaussian of a standard deviation of `strength` % of the height."""
    sigma = strength / 100 * images.shape[2]
    return _pixels(ndimage.gaussian_filter(images.astype(np.float32), (0, 0, sigma, sigma)))


CORRUPTIONS = (
    Corruption("noise", "standard deviation, share of the range", (0, 0.1, 0.2, 0.4, 0.8), noise),
    Corruption("rotation", "degrees", (0, 15, 30, 60, 90), rotation),
    Corruption("blur", "standard deviation, % of the height", (0, 2, 4, 8, 16), blur),
)


def corruption_curves(predictor: Predictor, part: Split) -> list[CorruptionCurve]:
    """Spoil up to 500 drawn images of `part` in every way, and answer them."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = part.take(np.sort(generator.permutation(len(part))[:_IMAGES]))
    return [_course(predictor, drawn, corruption) for corruption in CORRUPTIONS]


def _course(predictor: Predictor, part: Split, corruption: Corruption) -> CorruptionCurve:
    course = CorruptionCurve(corruption, [], [], [], [])
    for strength in corruption.strengths:
        given = answers(predictor, Split(corruption.apply(part.images, strength), part.labels))
        mean = given.mean_probabilities
        course.accuracy.append(float((mean.argmax(axis=1) == part.labels).mean()))
        course.confidence.append(float(mean.max(axis=1).mean()))
        course.mutual_information.append(float(given.uncertainty.mutual_information.mean()))
        course.typicality.append(float(given.uncertainty.typicality.mean()))
    return course


def _pixels(values: NDArray[np.float32]) -> Images:
    return np.rint(values).clip(0, 255).astype(np.uint8)
