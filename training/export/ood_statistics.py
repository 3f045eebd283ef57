"""The statistics of an image that its out-of-distribution (OOD) score is computed from.

The features alone have forgotten what makes blanks and noise strange. So the brightness and the
contrast of the pixels, the mean of each channel of up to five activations, and a thumbnail of the
image are looked at as well; the trunk's graph computes them in the same run. Knows no score.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.network.classifier import Classifier, HiddenLayer

STATISTICS = "ood_statistics"
"""The output of the exported graph that has them, float32 [N, S]."""
PIXELS_PER_CHANNEL = 2
"""Statistics of the pixels of each channel of the image: mean and root mean square."""
MAX_TAPPED_LAYERS = 5
"""More of them saw no more on Fashion-MNIST (docs/experiments.md), and cost time."""
THUMBNAIL_SIZE = 7
"""Pixels of a thumbnail's side, about: the image's side is divided by a whole number."""


def tapped_layers(network: Classifier) -> Sequence[HiddenLayer]:
    """Return the convolution layers whose activations are averaged, at most MAX_TAPPED_LAYERS.

    They are spread evenly over all but the last one, which is close to the features. The first sees
    noise, brightness and contrast; later ones see textures and shapes. A network without
    convolutions has none.
    """
    convolutions = [
        layer for layer in network.hidden_layers() if isinstance(layer.layer, nn.Conv2d)
    ]
    candidates = convolutions[:-1] or convolutions
    count = min(MAX_TAPPED_LAYERS, len(candidates))
    places = np.linspace(0, len(candidates) - 1, count).round().astype(int)
    return [candidates[place] for place in places]


def names_of_statistics(network: Classifier) -> list[str]:
    """Return where the statistics come from, in their order, as the manifest records it."""
    return ["pixels", *(layer.name for layer in tapped_layers(network)), "thumbnail", "features"]


def features_and_statistics(network: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the trunk; return its features, float32 [N, F], and the statistics, float32 [N, S].

    The first PIXELS_PER_CHANNEL * C statistics are of the pixels.

    Args:
        network: in evaluation mode.
        images: float32 [N, C, H, W] in 0..1.
    """
    tapped = {id(layer.activation) for layer in tapped_layers(network)}
    values = images
    averages = [average(images), average(images * images).sqrt()]
    for module in network.trunk.children():
        values = module(values)
        if id(module) in tapped:
            averages.append(average(values))
    pooled = torch.cat(averages, dim=1).flatten(1)
    return values, torch.cat([pooled, thumbnail(images).flatten(1), values], dim=1)


def average(values: Tensor) -> Tensor:
    """Return the mean of each channel, float32 [N, C, 1, 1].

    As a pooling it runs in the memory layout that ONNX Runtime's convolutions use; a mean over two
    axes takes three times as long.

    Args:
        values: float32 [N, C, H, W].
    """
    return functional.avg_pool2d(values, (values.shape[2], values.shape[3]))


def thumbnail(images: Tensor) -> Tensor:
    """Return the means of equal squares of the images, about THUMBNAIL_SIZE in each direction.

    Args:
        images: float32 [N, C, H, W].
    """
    height, width = (max(1, size // THUMBNAIL_SIZE) for size in images.shape[2:])
    return functional.avg_pool2d(images, (height, width))
