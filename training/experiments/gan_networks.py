"""Builds a DCGAN (Radford et al. 2016) for small images: a generator and a discriminator.

The discriminator is a `Classifier` with one logit, so that the health of its units is measured as
that of any other network. Knows no training.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from model.bundle.architecture_description import Architecture
from model.images.preprocessing import InputSpec
from training.network.activations import build_activation
from training.network.classifier import Classifier, Head
from training.network.input_normalisation import Normalise

LATENT_WIDTH = 100
"""Width of the random vector that the generator turns into an image."""
_REDUCTION = 4
"""The two strides of 2 together."""
_INITIAL_STD = 0.02

Network = TypeVar("Network", bound=nn.Module)


def build_generator(spec: InputSpec, channels: int) -> nn.Module:
    """Build the generator: latent vectors float32 [N, 100] -> images [N, C, H, W] in 0..1.

    Args:
        spec: size of the images; height and width are multiples of 4.
        channels: of the hidden feature maps at half the size of the image; twice as many at a
            quarter.
    """
    height, width = spec.height // _REDUCTION, spec.width // _REDUCTION
    generator = nn.Sequential(
        nn.Linear(LATENT_WIDTH, 2 * channels * height * width, bias=False),
        nn.Unflatten(1, (2 * channels, height, width)),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, spec.channels, 4, stride=2, padding=1),
        nn.Tanh(),
        Normalise([-1.0] * spec.channels, [2.0] * spec.channels),  # from -1..1 to 0..1
    )
    return _initialise(generator)


def build_discriminator(architecture: Architecture, channels: int) -> Classifier:
    """Build the discriminator: images [N, C, H, W] in 0..1 -> one logit, above 0 for real images.

    Args:
        architecture: activation and size of the images, multiples of 4.
        channels: of the first convolution; the second has twice as many.
    """
    spec = architecture.input
    activation, slope = architecture.activation, architecture.negative_slope
    trunk = nn.Sequential(
        Normalise([0.5] * spec.channels, [0.5] * spec.channels),
        nn.Conv2d(spec.channels, channels, 4, stride=2, padding=1),
        build_activation(activation, slope),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        build_activation(activation, slope),
        nn.Flatten(),
    )
    features = 2 * channels * (spec.height // _REDUCTION) * (spec.width // _REDUCTION)
    discriminator = Classifier(trunk, Head([features, 1], architecture, dropout_count=0))
    return _initialise(discriminator)


def draw_latents(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw latent vectors from the standard normal distribution: float32 [count, 100]."""
    return torch.randn(count, LATENT_WIDTH, generator=generator)


def _initialise(network: Network) -> Network:
    """Draw every weight from N(0, .02²), and the scales of batch normalisation from N(1, .02²)."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            nn.init.normal_(module.weight, mean, _INITIAL_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
