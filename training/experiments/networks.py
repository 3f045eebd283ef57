"""The networks of the papers, beside the presets: any depth of dense layers, and four convolutions.

They train here and are measured here; only the presets are exported.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from model.bundle.architecture import Architecture
from training.network.activations import build_activation
from training.network.classifier import Classifier, Head, Normalise, initialised


def dense(
    architecture: Architecture,
    widths: Sequence[int],
    input_dropout: float,
    pixels: tuple[Sequence[float], Sequence[float]],
) -> Classifier:
    """Dense layers of these widths, each activated and dropped out, then the output layer.

    Args:
        architecture: activation, dropout of the hidden layers, input and classes.
        widths: units of the hidden layers, one at least.
        input_dropout: probability of zeroing a pixel.
        pixels: mean and standard deviation of the training images, one a channel.
    """
    spec = architecture.input
    layers: list[nn.Module] = [Normalise(*pixels), nn.Flatten(), nn.Dropout(input_dropout)]
    for inner, outer in pairwise((spec.channels * spec.height * spec.width, *widths)):
        layers += [nn.Linear(inner, outer), _activation(architecture)]
        layers += [nn.Dropout(architecture.dropout)]
    trunk = nn.Sequential(*layers[:-1])  # the head begins with the last layer's dropout
    head = Head([widths[-1], architecture.classes], architecture, dropouts=1)
    return initialised(Classifier(trunk, head), architecture)


def convolutions(
    architecture: Architecture,
    widths: Sequence[int],
    pixels: tuple[Sequence[float], Sequence[float]],
) -> Classifier:
    """Convolutions of these channels, pooled between, no normalisation, then the output.

    Args:
        architecture: activation, dropout before the output, input and classes.
        widths: channels of the convolutions; each pooling halves the image.
        pixels: mean and standard deviation of the training images, one a channel.
    """
    layers: list[nn.Module] = [Normalise(*pixels)]
    channels: int = architecture.input.channels
    for index, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1), _activation(architecture)]
        channels = width
        if index < len(widths) - 1:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    shrunk = 2 ** (len(widths) - 1)
    spec = architecture.input
    features = channels * (spec.height // shrunk) * (spec.width // shrunk)
    head = Head([features, architecture.classes], architecture, dropouts=1)
    return initialised(Classifier(nn.Sequential(*layers), head), architecture)


def _activation(architecture: Architecture) -> nn.Module:
    return build_activation(architecture.activation, architecture.negative_slope)
