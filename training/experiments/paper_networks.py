"""Builds the networks of the papers, which are not presets: dense and convolutional networks.

They are used only in experiments; only the presets are exported.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from model.bundle.architecture_description import Architecture
from training.network.activations import build_activation
from training.network.classifier import Classifier, Head, initialise_network
from training.network.input_normalisation import Normalise

_KRIZHEVSKY_STD = 0.01
_GAL_CHANNELS = 32
_GAL_UNITS = 128


def build_dense(
    architecture: Architecture,
    widths: Sequence[int],
    input_dropout: float,
    pixel_statistics: tuple[Sequence[float], Sequence[float]],
) -> Classifier:
    """Build dense layers of `widths`, each with activation and dropout, and the output layer.

    Args:
        architecture: activation, dropout of the hidden layers, input and classes.
        widths: units of the hidden layers, at least one.
        input_dropout: probability of zeroing a pixel.
        pixel_statistics: mean and standard deviation of the training images, by channel.
    """
    spec = architecture.input
    layers: list[nn.Module] = [
        Normalise(*pixel_statistics),
        nn.Flatten(),
        nn.Dropout(input_dropout),
    ]
    for inner, outer in pairwise((spec.channels * spec.height * spec.width, *widths)):
        layers += [nn.Linear(inner, outer), _activation(architecture)]
        layers += [nn.Dropout(architecture.dropout)]
    trunk = nn.Sequential(*layers[:-1])  # the last dropout belongs to the head
    head = Head([widths[-1], architecture.classes], architecture, dropout_count=1)
    return initialise_network(Classifier(trunk, head), architecture)


def build_convolutional(
    architecture: Architecture,
    widths: Sequence[int],
    pixel_statistics: tuple[Sequence[float], Sequence[float]],
) -> Classifier:
    """Build convolutions with pooling between them, without normalisation, and the output layer.

    Args:
        architecture: activation, dropout before the output, input and classes.
        widths: channels of the convolutions; each pooling halves the image.
        pixel_statistics: mean and standard deviation of the training images, by channel.
    """
    layers: list[nn.Module] = [Normalise(*pixel_statistics)]
    channels: int = architecture.input.channels
    for index, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1), _activation(architecture)]
        channels = width
        if index < len(widths) - 1:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    reduction = 2 ** (len(widths) - 1)
    spec = architecture.input
    features = channels * (spec.height // reduction) * (spec.width // reduction)
    head = Head([features, architecture.classes], architecture, dropout_count=1)
    return initialise_network(Classifier(nn.Sequential(*layers), head), architecture)


def build_active_learning(
    architecture: Architecture, pixel_statistics: tuple[Sequence[float], Sequence[float]]
) -> Classifier:
    """Build the network of Gal, Islam & Ghahramani 2017: two convolutions and a dense layer.

    The dropout of .25 behind the pooling is in the trunk, so it is active in training alone; that
    before the output is the head's, and is sampled.

    Args:
        architecture: dropout before the output, input and classes; the activation.
        pixel_statistics: mean and standard deviation of the training images, by channel.
    """
    spec = architecture.input
    features = _GAL_CHANNELS * ((spec.height - 6) // 2) * ((spec.width - 6) // 2)
    trunk = nn.Sequential(
        Normalise(*pixel_statistics),
        nn.Conv2d(spec.channels, _GAL_CHANNELS, 4),
        _activation(architecture),
        nn.Conv2d(_GAL_CHANNELS, _GAL_CHANNELS, 4),
        _activation(architecture),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(features, _GAL_UNITS),
        _activation(architecture),
    )
    head = Head([_GAL_UNITS, architecture.classes], architecture, dropout_count=1)
    network = initialise_network(Classifier(trunk, head), architecture)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def initialise_as_krizhevsky(network: Classifier) -> None:
    """Initialise every layer in place as Krizhevsky et al. 2012 did, whatever its size.

    Weights are drawn from a normal distribution of standard deviation .01. The biases are 1 in the
    second, fourth, ... hidden layer, so that its ReLUs start with positive inputs, and else 0: the
    paper has 1 in the second, the fourth and the fifth of five convolutions.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=_KRIZHEVSKY_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for hidden in network.hidden_layers()[1::2]:
        if hidden.bias is not None:
            nn.init.ones_(hidden.bias)


def replace_activations(
    network: nn.Module, old: type[nn.Module], new: Callable[[], nn.Module]
) -> None:
    """Replace, in place, every activation of the type `old` by one that `new` makes."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, old):
                setattr(parent, name, new())


def _activation(architecture: Architecture) -> nn.Module:
    return build_activation(architecture.activation, architecture.negative_slope)
