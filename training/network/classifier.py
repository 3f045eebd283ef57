"""Classifier = deterministic trunk + small stochastic head; the presets.

Dropout stands only in the head, so the trunk runs once for an image and each sample costs one head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.bundle.architecture import Architecture, DropoutLayer
from model.errors import SettingsError
from model.images.preprocessing import InputSpec
from training.network.activations import ACTIVATIONS, build_activation, initialise

Norm = nn.BatchNorm1d | nn.BatchNorm2d

CNN_FEATURES = 96
MLP_FEATURES = 500
ALEXNET_WIDTH = 4096
ALEXNET_MIN_PIXELS = 63
"""Below this height or width the third pooling of alexnet has nothing left to pool."""


class Classifier(nn.Module):
    """`forward(images) = head(trunk(images))`; images float32 [N, C, H, W] in 0..1."""

    def __init__(self, trunk: nn.Module, head: "Head") -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 [N, K]."""
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def hidden_layers(self) -> "list[HiddenLayer]":
        """Return the learnt layers that an activation follows, in the order of computation."""
        found: list[HiddenLayer] = []
        counts = {"convolution": 0, "dense": 0}
        layer: nn.Conv2d | nn.Linear | None = None
        norm: Norm | None = None
        for module in self._in_order():
            if isinstance(module, nn.Conv2d | nn.Linear):
                layer, norm = module, None
            elif isinstance(module, Norm):
                norm = module
            elif isinstance(module, ACTIVATIONS) and layer is not None:
                kind = "convolution" if isinstance(layer, nn.Conv2d) else "dense"
                counts[kind] += 1
                found.append(HiddenLayer(f"{kind} {counts[kind]}", layer, norm, module))
        return found

    def _in_order(self) -> Iterator[nn.Module]:
        yield from self.trunk.children()
        yield self.head.layers[0]
        for activation, layer in zip(self.head.activations, self.head.layers[1:], strict=True):
            yield activation
            yield layer


@dataclass(frozen=True)
class HiddenLayer:
    """A learnt layer, the normalisation behind it where there is one, and its activation."""

    name: str
    """Its kind and its number among its kind: `convolution 2`, `dense 1`."""
    layer: nn.Conv2d | nn.Linear
    norm: Norm | None
    activation: nn.Module

    @property
    def units(self) -> int:
        """Count its units; a convolution's unit is its channel."""
        return self.layer.weight.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """What is added last before the activation: float32 [units], or None where nothing is."""
        return self.norm.bias if self.norm is not None else self.layer.bias


class Head(nn.Module):
    """Dropout before each linear layer; the activation between two of them.

    In training mode dropout is drawn by torch (inverted scaling, Srivastava et al. 2014); in
    evaluation mode it is the identity; `sample` applies the masks it is given.
    """

    def __init__(self, widths: Sequence[int], architecture: Architecture, dropouts: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(architecture.dropout)
        self.dropouts = dropouts
        self.widths = tuple(widths)
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise(widths))
        self.activations = nn.ModuleList(
            build_activation(architecture.activation, architecture.negative_slope)
            for _ in self.layers[1:]
        )

    @property
    def dropout_layers(self) -> tuple[DropoutLayer, ...]:
        """The dropout layers, in the order of `sample`'s masks."""
        return tuple(
            DropoutLayer(p=self.dropout.p, width=width) for width in self.widths[: self.dropouts]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, F] -> logits [N, K]."""
        return self._run(features, [self.dropout] * self.dropouts)

    def sample(self, features: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Features [N, F] and one mask [T, F_i] a dropout layer -> logits [N, T, K].

        Masks hold 0 or 1/(1-p). Sample t is one thinned network, the same for every row.
        """
        if len(self.layers) == 1 == len(masks):
            # The weights times a row's features are fewer than its features times all masks.
            (layer,), (mask,) = self.layers, masks
            assert isinstance(layer, nn.Linear)
            weighted = features.unsqueeze(1) * layer.weight
            return (weighted @ mask.T + layer.bias.unsqueeze(1)).transpose(1, 2)
        return self._run(features.unsqueeze(1), [mask.mul for mask in masks])

    def _run(self, x: Tensor, dropouts: Sequence[object]) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index > 0:
                x = self.activations[index - 1](x)
            if index < len(dropouts):
                x = dropouts[index](x)  # type: ignore[operator]
            x = layer(x)
        return x


class Normalise(nn.Module):
    """(x - mean) / std by channel, with the training images' figures as constants."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> the same shape, about zero mean and unit variance."""
        return (images - self.mean) / self.std


def build(
    architecture: Architecture,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Build the preset with fresh weights from torch's current generator.

    mean, std: of the training images' pixels in 0..1, one a channel; 0 and 1 when not given.

    Raises:
        SettingsError: the input is too small for the preset.
    """
    channels = architecture.input.channels
    normalise = Normalise(mean or [0.0] * channels, std or [1.0] * channels)
    presets = {"cnn": _cnn, "mlp": _mlp, "alexnet": _alexnet}
    return initialised(presets[architecture.preset](architecture, normalise), architecture)


def initialised(network: Classifier, architecture: Architecture) -> Classifier:
    """Draw fresh weights for the network's activation, in place, and return it."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            initialise(module, architecture.activation, architecture.negative_slope)
    nn.init.xavier_uniform_(_output_layer(network).weight)  # logits: no activation follows
    return network


def count_parameters(network: nn.Module) -> int:
    """Count the learnt numbers; normalisation's running figures are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def _output_layer(network: Classifier) -> nn.Linear:
    layer = network.head.layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _cnn(architecture: Architecture, normalise: Normalise) -> Classifier:
    """Pairs of convolutions, each ended by a halving, until the map is at most 4 pixels wide.

    Then averages over windows that leave 2 x 2 places, a dense layer, and the head.
    """
    layers: list[nn.Module] = [normalise]
    channels: int = architecture.input.channels
    size = _size(architecture.input)
    blocks = [(16, 16), (32, 32), (64, 64)]
    while min(size) > 4 * 2 ** len(blocks) + 3:
        blocks.append((64, 64))
    for block in blocks:
        # On a map under 4 pixels the first convolution has seen it all.
        for width in block if min(size) >= 4 else block[:1]:
            layers += _convolution(channels, width, architecture)
            channels = width
        if min(size) >= 2:
            layers.append(nn.MaxPool2d(2))
            size = (size[0] // 2, size[1] // 2)
    window = (max(1, size[0] - 1), max(1, size[1] - 1))
    if max(window) > 1:
        layers.append(nn.AvgPool2d(window, stride=1))
    places = min(2, size[0]) * min(2, size[1])
    # Averages are all positive: without normalisation, many features would be born dead.
    layers += [nn.Flatten(), nn.Linear(channels * places, CNN_FEATURES, bias=False)]
    layers += [nn.BatchNorm1d(CNN_FEATURES)]
    layers.append(build_activation(architecture.activation, architecture.negative_slope))
    head = Head([CNN_FEATURES, architecture.classes], architecture, dropouts=1)
    return Classifier(nn.Sequential(*layers), head)


def _convolution(inner: int, outer: int, architecture: Architecture) -> list[nn.Module]:
    return [
        nn.Conv2d(inner, outer, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        build_activation(architecture.activation, architecture.negative_slope),
    ]


def _mlp(architecture: Architecture, normalise: Normalise) -> Classifier:
    """The classic 784-500-10 network (on 28 x 28 grey and ten classes)."""
    spec = architecture.input
    trunk = nn.Sequential(
        normalise,
        nn.Flatten(),
        nn.Linear(spec.channels * spec.height * spec.width, MLP_FEATURES),
        build_activation(architecture.activation, architecture.negative_slope),
    )
    return Classifier(trunk, Head([MLP_FEATURES, architecture.classes], architecture, dropouts=1))


def _alexnet(architecture: Architecture, normalise: Normalise) -> Classifier:
    """Krizhevsky et al. 2012 with its two groups: 60,965,224 parameters at 1,000 classes."""
    size = _size(architecture.input)
    if min(size) < ALEXNET_MIN_PIXELS:
        raise SettingsError(
            f"The alexnet preset needs images of at least {ALEXNET_MIN_PIXELS} x "
            f"{ALEXNET_MIN_PIXELS} pixels, but these are {size[0]} x {size[1]}; "
            "choose a larger --image-size, or --preset cnn."
        )

    def activation() -> nn.Module:
        return build_activation(architecture.activation, architecture.negative_slope)

    def normalise_response() -> nn.Module:
        # The paper's alpha of 1e-4 weighs the sum of five squares; torch divides alpha by five.
        return nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)

    def pool() -> nn.Module:
        return nn.MaxPool2d(kernel_size=3, stride=2)

    trunk = nn.Sequential(
        normalise,
        nn.Conv2d(architecture.input.channels, 96, kernel_size=11, stride=4, padding=2),
        *(activation(), normalise_response(), pool()),
        nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
        *(activation(), normalise_response(), pool()),
        *(nn.Conv2d(256, 384, kernel_size=3, padding=1), activation()),
        *(nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2), activation()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2), activation()),
        *(pool(), nn.Flatten()),
    )
    with torch.no_grad():
        images = torch.zeros(1, architecture.input.channels, *size)
        features = trunk(images).shape[1]
    widths = [features, ALEXNET_WIDTH, ALEXNET_WIDTH, architecture.classes]
    return Classifier(trunk, Head(widths, architecture, dropouts=2))


def _size(spec: InputSpec) -> tuple[int, int]:
    return spec.height, spec.width
