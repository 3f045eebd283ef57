"""Builds the classifiers of the presets: a deterministic trunk and a small head with dropout.

Only the head has dropout, so MC dropout runs the trunk once per image and the head once per sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.bundle.architecture_description import Architecture, DropoutLayer
from model.errors import SettingsError
from model.images.preprocessing import InputSpec
from training.network import efficientnet_lite
from training.network.activations import ACTIVATIONS, build_activation, initialise_layer
from training.network.input_normalisation import Normalise

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

CNN_FEATURES = 96
MLP_FEATURES = 500
ALEXNET_WIDTH = 4096
BACKBONE_HEAD_WIDTH = 256
"""Units of the hidden layer of a head with two layers behind a backbone."""
ALEXNET_MIN_PIXELS = 63
"""Least height and width; on smaller images the third pooling of alexnet has an empty output."""


class Classifier(nn.Module):
    """An image classifier: `forward(images) = head(trunk(images))`."""

    def __init__(self, trunk: nn.Module, head: "Head") -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 [N, K] of images float32 [N, C, H, W] in 0..1."""
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def hidden_layers(self) -> "list[HiddenLayer]":
        """Return the layers that an activation follows, in the order of computation."""
        found: list[HiddenLayer] = []
        counts = {"convolution": 0, "dense": 0}
        layer: nn.Conv2d | nn.Linear | None = None
        norm: BatchNorm | None = None
        for module in self._modules_in_order():
            if isinstance(module, nn.Conv2d | nn.Linear):
                layer, norm = module, None
            elif isinstance(module, BatchNorm):
                norm = module
            elif isinstance(module, ACTIVATIONS) and layer is not None:
                kind = "convolution" if isinstance(layer, nn.Conv2d) else "dense"
                counts[kind] += 1
                found.append(HiddenLayer(f"{kind} {counts[kind]}", layer, norm, module))
        return found

    def _modules_in_order(self) -> Iterator[nn.Module]:
        yield from self.trunk.children()
        yield self.head.layers[0]
        for activation, layer in zip(self.head.activations, self.head.layers[1:], strict=True):
            yield activation
            yield layer


@dataclass(frozen=True)
class HiddenLayer:
    """A convolution or dense layer with its batch normalisation, if any, and its activation."""

    name: str
    """The kind of layer and its number among that kind: `convolution 2`, `dense 1`."""
    layer: nn.Conv2d | nn.Linear
    norm: BatchNorm | None
    activation: nn.Module

    @property
    def units(self) -> int:
        """The number of units; a unit of a convolution is an output channel."""
        return self.layer.weight.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias added last before the activation: float32 [units], or None without one."""
        return self.norm.bias if self.norm is not None else self.layer.bias


class Head(nn.Module):
    """Dense layers with an activation between them and dropout before the first ones.

    In training mode torch draws the dropout (inverted scaling, Srivastava et al. 2014); in
    evaluation mode dropout is the identity; `sample` applies the masks that it receives.
    """

    def __init__(
        self, widths: Sequence[int], architecture: Architecture, dropout_count: int
    ) -> None:
        """Build the layers.

        Args:
            widths: input features of each layer, then the number of classes.
            architecture: its dropout probability and activation.
            dropout_count: number of layers, from the first, that have dropout before them.
        """
        super().__init__()
        self.dropout = nn.Dropout(architecture.dropout)
        self.dropout_count = dropout_count
        self.widths = tuple(widths)
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise(widths))
        self.activations = nn.ModuleList(
            build_activation(architecture.activation, architecture.negative_slope)
            for _ in self.layers[1:]
        )

    @property
    def dropout_layers(self) -> tuple[DropoutLayer, ...]:
        """The dropout layers, in the order of the masks of `sample`."""
        return tuple(
            DropoutLayer(p=self.dropout.p, width=width)
            for width in self.widths[: self.dropout_count]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits float32 [..., K] of features float32 [..., F]."""
        return self._run(features, [self.dropout] * self.dropout_count)

    def sample(self, features: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Return the logits float32 [N, T, K] of T thinned networks.

        Args:
            features: float32 [N, F], the output of the trunk.
            masks: for each dropout layer i a float32 [T, F_i] of 0 and 1/(1-p). Row t of all masks
                is one thinned network, which is the same for every image.
        """
        if len(self.layers) == 1 == len(masks):
            # Per image, weights x features is [K, F] and features x masks [T, F]; usually K < T.
            (layer,), (mask,) = self.layers, masks
            assert isinstance(layer, nn.Linear)
            weighted = features.unsqueeze(1) * layer.weight
            return (weighted @ mask.T + layer.bias.unsqueeze(1)).transpose(1, 2)
        return self._run(features.unsqueeze(1), [mask.mul for mask in masks])

    def _run(self, x: Tensor, dropouts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index > 0:
                x = self.activations[index - 1](x)
            if index < len(dropouts):
                x = dropouts[index](x)
            x = layer(x)
        return x


def build_classifier(
    architecture: Architecture,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Build the preset of `architecture` with weights drawn from torch's global generator.

    Args:
        architecture: preset, activation, dropout, input and number of classes.
        mean: of the training images' pixels in 0..1, one per channel; 0 by default.
        std: standard deviation of the same; 1 by default.

    Raises:
        SettingsError: the input is too small for the preset.
    """
    if architecture.backbone is not None:
        return _with_backbone(architecture)
    channels = architecture.input.channels
    normalise = Normalise(mean or [0.0] * channels, std or [1.0] * channels)
    assert architecture.preset is not None
    presets = {"cnn": _cnn, "mlp": _mlp, "alexnet": _alexnet}
    return initialise_network(presets[architecture.preset](architecture, normalise), architecture)


def initialise_network(network: Classifier, architecture: Architecture) -> Classifier:
    """Initialise every layer in place for the activation of `architecture`; return `network`."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            initialise_layer(module, architecture.activation, architecture.negative_slope)
    nn.init.xavier_uniform_(_output_layer(network).weight)  # logits: no activation follows
    return network


def count_parameters(network: nn.Module) -> int:
    """Count the trainable parameters; running means and variances are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def _output_layer(network: Classifier) -> nn.Linear:
    layer = network.head.layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _cnn(architecture: Architecture, normalise: Normalise) -> Classifier:
    """Build pairs of convolutions with max pooling after each pair, a dense layer and the head.

    Pairs are added until the feature map is at most 4 pixels wide; average pooling then reduces it
    to 2 x 2.
    """
    layers: list[nn.Module] = [normalise]
    channels: int = architecture.input.channels
    size = _height_and_width(architecture.input)
    blocks = [(16, 16), (32, 32), (64, 64)]
    while min(size) > 4 * 2 ** len(blocks) + 3:
        blocks.append((64, 64))
    for block in blocks:
        # On a map under 4 pixels the receptive field of one convolution covers the whole map.
        for width in block if min(size) >= 4 else block[:1]:
            layers += _convolution_block(channels, width, architecture)
            channels = width
        if min(size) >= 2:
            layers.append(nn.MaxPool2d(2))
            size = (size[0] // 2, size[1] // 2)
    window = (max(1, size[0] - 1), max(1, size[1] - 1))
    if max(window) > 1:
        layers.append(nn.AvgPool2d(window, stride=1))
    positions = min(2, size[0]) * min(2, size[1])
    # The averages are all positive: without normalisation, many units would start dead.
    layers += [nn.Flatten(), nn.Linear(channels * positions, CNN_FEATURES, bias=False)]
    layers += [nn.BatchNorm1d(CNN_FEATURES)]
    layers.append(build_activation(architecture.activation, architecture.negative_slope))
    head = Head([CNN_FEATURES, architecture.classes], architecture, dropout_count=1)
    return Classifier(nn.Sequential(*layers), head)


def _convolution_block(inner: int, outer: int, architecture: Architecture) -> list[nn.Module]:
    return [
        nn.Conv2d(inner, outer, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        build_activation(architecture.activation, architecture.negative_slope),
    ]


def _mlp(architecture: Architecture, normalise: Normalise) -> Classifier:
    """Build the classic 784-500-10 network (on 28 x 28 grey images and ten classes)."""
    spec = architecture.input
    trunk = nn.Sequential(
        normalise,
        nn.Flatten(),
        nn.Linear(spec.channels * spec.height * spec.width, MLP_FEATURES),
        build_activation(architecture.activation, architecture.negative_slope),
    )
    return Classifier(
        trunk, Head([MLP_FEATURES, architecture.classes], architecture, dropout_count=1)
    )


def _alexnet(architecture: Architecture, normalise: Normalise) -> Classifier:
    """Build Krizhevsky et al. 2012 with its two groups: 60,965,224 parameters at 1,000 classes."""
    size = _height_and_width(architecture.input)
    if min(size) < ALEXNET_MIN_PIXELS:
        raise SettingsError(
            f"The alexnet preset needs images of at least {ALEXNET_MIN_PIXELS} x "
            f"{ALEXNET_MIN_PIXELS} pixels, but these are {size[0]} x {size[1]}; "
            "choose a larger --image-size, or --preset cnn."
        )

    def activation() -> nn.Module:
        return build_activation(architecture.activation, architecture.negative_slope)

    def response_normalisation() -> nn.Module:
        # The paper's alpha of 1e-4 multiplies the sum of five squares; torch divides alpha by five.
        return nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)

    def pool() -> nn.Module:
        return nn.MaxPool2d(kernel_size=3, stride=2)

    trunk = nn.Sequential(
        normalise,
        nn.Conv2d(architecture.input.channels, 96, kernel_size=11, stride=4, padding=2),
        *(activation(), response_normalisation(), pool()),
        nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
        *(activation(), response_normalisation(), pool()),
        *(nn.Conv2d(256, 384, kernel_size=3, padding=1), activation()),
        *(nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2), activation()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2), activation()),
        *(pool(), nn.Flatten()),
    )
    with torch.no_grad():
        images = torch.zeros(1, architecture.input.channels, *size)
        features = trunk(images).shape[1]
    widths = [features, ALEXNET_WIDTH, ALEXNET_WIDTH, architecture.classes]
    return Classifier(trunk, Head(widths, architecture, dropout_count=2))


def _with_backbone(architecture: Architecture) -> Classifier:
    """Build EfficientNet-Lite0, whose weights are loaded later, and a head with fresh weights."""
    head = build_backbone_head(architecture, efficientnet_lite.FEATURES)
    return Classifier(efficientnet_lite.efficientnet_lite0(), head)


def build_backbone_head(architecture: Architecture, features: int) -> Head:
    """Build the head behind a backbone with weights drawn from torch's global generator.

    Args:
        architecture: dropout, activation, number of dense layers and of classes.
        features: number of the backbone's features.
    """
    widths = [features, *[BACKBONE_HEAD_WIDTH] * (architecture.head_layers - 1)]
    head = Head([*widths, architecture.classes], architecture, len(widths))
    *hidden, output = head.layers
    for layer in hidden:
        assert isinstance(layer, nn.Linear)
        initialise_layer(layer, architecture.activation, architecture.negative_slope)
    assert isinstance(output, nn.Linear)
    nn.init.xavier_uniform_(output.weight)
    nn.init.zeros_(output.bias)
    return head


def _height_and_width(spec: InputSpec) -> tuple[int, int]:
    return spec.height, spec.width
