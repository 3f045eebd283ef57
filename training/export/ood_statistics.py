"""The statistics of an image that its out-of-distribution (OOD) score is computed from.

The features alone have forgotten what makes blanks and noise strange, so the pixels and up to five
activations of the trunk are looked at as well. Each is pooled to the mean and the root mean square
of every channel, which the trunk's graph computes in the same run. Knows no score.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.network.classifier import Classifier, HiddenLayer

STATISTICS = "ood_statistics"
"""The output of the exported graph that has them, float32 [N, S]."""
MAX_TAPPED_LAYERS = 5
"""More of them saw no more on Fashion-MNIST (docs/experiments.md), and cost time."""


def tapped_layers(network: Classifier) -> Sequence[HiddenLayer]:
    """Return the convolution layers whose activations are pooled, at most MAX_TAPPED_LAYERS.

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
    return ["pixels", *(layer.name for layer in tapped_layers(network)), "features"]


def pixel_columns(network: Classifier, channels: int) -> NDArray[np.int64]:
    """Return which of the statistics are of the pixels, int64 [2 * channels]."""
    pooled = channels + sum(layer.units for layer in tapped_layers(network))
    return np.concatenate([np.arange(channels), pooled + np.arange(channels)])


def features_and_statistics(network: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the trunk; return its features, float32 [N, F], and the statistics, float32 [N, S].

    The statistics are the means of all pooled channels, then their root mean squares, then the
    features.

    Args:
        network: in evaluation mode.
        images: float32 [N, C, H, W] in 0..1.
    """
    tapped = {id(layer.activation) for layer in tapped_layers(network)}
    values, pooled = images, [images]
    for module in network.trunk.children():
        values = module(values)
        if id(module) in tapped:
            pooled.append(values)
    means = torch.cat([average(each) for each in pooled], dim=1)
    mean_squares = torch.cat([average(each * each) for each in pooled], dim=1)
    statistics = torch.cat([means, mean_squares.sqrt()], dim=1).flatten(1)
    return values, torch.cat([statistics, values], dim=1)


def average(values: Tensor) -> Tensor:
    """Return the mean of each channel, float32 [N, C, 1, 1].

    As a pooling it runs in the memory layout that ONNX Runtime's convolutions use; a mean over two
    axes would take three times as long.

    Args:
        values: float32 [N, C, H, W].
    """
    return functional.avg_pool2d(values, (values.shape[2], values.shape[3]))
