"""The statistics of an image that its out-of-distribution (OOD) score is computed from.

The features alone have forgotten what makes blanks and noise strange. So the brightness and the
contrast of the pixels, the mean of each channel of up to five activations, and a thumbnail of the
image are looked at as well; the trunk's graph computes them in the same run. Knows no score.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.network.classifier import Classifier, HiddenLayer
from training.network.efficientnet_lite import ConvolutionBlock, InvertedResidual

STATISTICS = "ood_statistics"
"""The output of the exported graph that has them, float32 [N, S]."""
PIXELS_PER_CHANNEL = 2
"""Statistics of the pixels of each channel of the image: mean and root mean square."""
_GRADIENTS_PER_CHANNEL = 2
"""Further ones before a backbone: how much neighbours differ, to the right and below."""
MAX_TAPPED_LAYERS = 5
"""More of them saw no more on Fashion-MNIST (docs/experiments.md), and cost time."""
THUMBNAIL_SIZE = 7
"""Pixels of a thumbnail's side, about: the image's side is divided by a whole number."""

T = TypeVar("T")


def evenly_spread(candidates: Sequence[T]) -> list[T]:
    """Return the layers that are averaged, at most MAX_TAPPED_LAYERS of the candidates.

    They are spread evenly over all but the last one, which is close to the features. The first sees
    noise, brightness and contrast; later ones see textures and shapes.
    """
    candidates = candidates[:-1] or candidates
    count = min(MAX_TAPPED_LAYERS, len(candidates))
    places = np.linspace(0, len(candidates) - 1, count).round().astype(int)
    return [candidates[place] for place in places]


def names_with_layers(layers: Iterable[str]) -> list[str]:
    """Return where the statistics come from, in their order; layers: those that are averaged."""
    return ["pixels", *layers, "thumbnail", "features"]


def tapped_layers(network: Classifier) -> Sequence[HiddenLayer]:
    """Return the convolution layers whose activations are averaged; there may be none."""
    return evenly_spread(
        [layer for layer in network.hidden_layers() if isinstance(layer.layer, nn.Conv2d)]
    )


def names_of_statistics(network: Classifier) -> list[str]:
    """Return where the statistics come from, in their order, as the manifest records it."""
    return names_with_layers(name for name, _ in _taps(network))


def count_pixel_statistics(network: Classifier, channels: int) -> int:
    """Return how many of the statistics are of the pixels; they are the first ones.

    channels: of the images.
    """
    gradients = _GRADIENTS_PER_CHANNEL if _blocks(network) else 0
    return channels * (PIXELS_PER_CHANNEL + gradients)


def _taps(network: Classifier) -> Sequence[tuple[str, nn.Module]]:
    """Return the modules whose outputs are averaged, by name; of a backbone some of its blocks."""
    blocks = _blocks(network)
    if blocks:
        return evenly_spread(blocks)
    return [(layer.name, layer.activation) for layer in tapped_layers(network)]


def _blocks(network: Classifier) -> Sequence[tuple[str, nn.Module]]:
    """Return the blocks of a backbone, by name; a network from scratch has none."""
    return [
        (name.replace("_", " "), module)
        for name, module in network.trunk.named_children()
        if isinstance(module, InvertedResidual | ConvolutionBlock)
    ]


def features_and_statistics(network: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the trunk; return its features, float32 [N, F], and the statistics, float32 [N, S].

    The first `count_pixel_statistics` of them are of the pixels. Before a backbone these include
    differences of neighbours: few photographs do not show by the activations alone that noise has
    too much of them, and a blank has none.

    Args:
        network: in evaluation mode.
        images: float32 [N, C, H, W] in 0..1.
    """
    tapped = {id(module) for _, module in _taps(network)}
    values = images
    averages = [average(images), average(images * images).sqrt()]
    if _blocks(network):
        averages += root_mean_differences(images)
    for module in network.trunk.children():
        values = module(values)
        if id(module) in tapped:
            # A block's outputs have both signs: of noise, their means over the positions vanish.
            is_linear = isinstance(module, InvertedResidual)
            averages.append(average(values.abs() if is_linear else values))
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


def root_mean_differences(images: Tensor) -> Sequence[Tensor]:
    """Return the roots of the mean |difference| of neighbours, two of float32 [N, C, 1, 1].

    The root makes blanks, which have none, as far from photographs as noise is.

    Args:
        images: float32 [N, C, H, W], of at least 2 x 2 pixels.
    """
    right = images[:, :, :, 1:] - images[:, :, :, :-1]
    below = images[:, :, 1:] - images[:, :, :-1]
    return [average(each.abs()).sqrt() for each in (right, below)]


def thumbnail(images: Tensor) -> Tensor:
    """Return the means of equal squares of the images, about THUMBNAIL_SIZE in each direction.

    Args:
        images: float32 [N, C, H, W].
    """
    height, width = (max(1, size // THUMBNAIL_SIZE) for size in images.shape[2:])
    return functional.avg_pool2d(images, (height, width))
