"""The statistics of an image that its out-of-distribution (OOD) score is computed from.

The features alone have forgotten what makes blanks and noise strange, so the pixels and up to five
activations of the trunk are looked at as well. Each is pooled to the mean and the root mean square
of every channel, which the trunk's graph computes in the same run. Knows no score.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.network.classifier import Classifier, HiddenLayer

STATISTICS = "ood_statistics"
"""The output of the exported graph that has them, float32 [N, S]."""
POOLED_PER_CHANNEL = 2
"""Numbers that `pool_channels` keeps of each channel."""
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


def features_and_statistics(network: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the trunk; return its features, float32 [N, F], and the statistics, float32 [N, S].

    Args:
        network: in evaluation mode.
        images: float32 [N, C, H, W] in 0..1.
    """
    tapped = {id(layer.activation) for layer in tapped_layers(network)}
    values, statistics = images, [pool_channels(images)]
    for module in network.trunk.children():
        values = module(values)
        if id(module) in tapped:
            statistics.append(pool_channels(values))
    return values, torch.cat([*statistics, values], dim=1)


def pool_channels(values: Tensor) -> Tensor:
    """Return the mean and the root mean square of each channel, float32 [N, 2C].

    Args:
        values: float32 [N, C, H, W].
    """
    root_mean_square = values.square().mean(dim=(2, 3)).sqrt()
    return torch.cat([values.mean(dim=(2, 3)), root_mean_square], dim=1)
