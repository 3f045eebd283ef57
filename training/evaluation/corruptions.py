"""Corrupts images by noise, rotation and blur, and measures the predictions at each severity."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.inference.predictor import Predictor
from training.data.dataset import Split
from training.evaluation.metrics import predict_split

SEED = 0
_MAX_IMAGES = 500
_MIN_IMAGES = 32
_MAX_PIXELS = 2**22
"""Values of all images together: 15 severities of 500 photographs would take many minutes."""

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Corruption:
    """A corruption of images uint8 [N, C, H, W], with the severities that are measured."""

    name: str
    unit: str
    """Unit of the severities."""
    severities: tuple[float, ...]
    apply: Callable[[Images, float], Images]
    """Returns the images corrupted with a severity."""


@dataclass(frozen=True)
class CorruptionCurve:
    """Means over the images with dropout active, at each severity of one corruption."""

    corruption: Corruption
    accuracy: list[float]
    confidence: list[float]
    mutual_information: list[float]
    """In nats."""
    typicality: list[float]
    """NaN for an uncalibrated bundle."""


def gaussian_noise(images: Images, severity: float) -> Images:
    """Add normal noise whose standard deviation is `severity` times the range of a pixel, 255."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    noise = generator.standard_normal(images.shape, dtype=np.float32)
    return _to_pixels(images + 255 * severity * noise)


def rotate(images: Images, degrees: float) -> Images:
    """Rotate around the centre, anticlockwise; what comes from outside the image is black."""
    pixels = images.astype(np.float32)
    return _to_pixels(ndimage.rotate(pixels, degrees, axes=(3, 2), reshape=False, order=1))


def gaussian_blur(images: Images, severity: float) -> Images:
    """Blur with a Gaussian whose standard deviation is `severity` % of the image's height."""
    sigma = severity / 100 * images.shape[2]
    return _to_pixels(ndimage.gaussian_filter(images.astype(np.float32), (0, 0, sigma, sigma)))


CORRUPTIONS = (
    Corruption(
        "noise",
        "standard deviation, share of the range",
        severities=(0, 0.1, 0.2, 0.4, 0.8),
        apply=gaussian_noise,
    ),
    Corruption("rotation", "degrees", severities=(0, 15, 30, 60, 90), apply=rotate),
    Corruption(
        "blur",
        "standard deviation, % of the height",
        severities=(0, 2, 4, 8, 16),
        apply=gaussian_blur,
    ),
)


def corruption_curves(predictor: Predictor, split: Split) -> list[CorruptionCurve]:
    """Measure up to 500 images drawn from `split`, with each corruption at each severity.

    Of large images fewer are drawn, but at least 32.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    fitting = _MAX_PIXELS // int(np.prod(split.images.shape[1:]))
    count = min(_MAX_IMAGES, max(_MIN_IMAGES, fitting))
    drawn = split.take(np.sort(generator.permutation(len(split))[:count]))
    return [_corruption_curve(predictor, drawn, corruption) for corruption in CORRUPTIONS]


def _corruption_curve(
    predictor: Predictor, split: Split, corruption: Corruption
) -> CorruptionCurve:
    curve = CorruptionCurve(corruption, [], [], [], [])
    for severity in corruption.severities:
        corrupted = Split(corruption.apply(split.images, severity), split.labels)
        answers = predict_split(predictor, corrupted)
        probabilities, uncertainty = answers.mean_probabilities, answers.uncertainty
        curve.accuracy.append(float((probabilities.argmax(axis=1) == split.labels).mean()))
        curve.confidence.append(float(probabilities.max(axis=1).mean()))
        curve.mutual_information.append(float(uncertainty.mutual_information.mean()))
        curve.typicality.append(float(uncertainty.typicality.mean()))
    return curve


def _to_pixels(values: NDArray[np.float32]) -> Images:
    return np.rint(values).clip(0, 255).astype(np.uint8)
