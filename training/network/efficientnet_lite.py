"""EfficientNet-Lite0, a small convolutional network for photographs, as a trunk.

EfficientNet (Tan & Le 2019) without squeeze-and-excitation and with ReLU6 for swish, so that it
fits integers and dropout; its stem and its top are never scaled (TensorFlow 2020,
github.com/tensorflow/tpu, models/official/efficientnet/lite). Knows no weights.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from training.network.input_normalisation import Normalise

FEATURES = 1280
IMAGE_SIZE = 224
"""Height and width, in pixels, of the images that the published weights were trained on."""

_STEM = 32
_STAGES = (
    # blocks, kernel size, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_NORM_EPSILON = 1e-3  # TensorFlow's; torch's own default is 1e-5
_NORM_MOMENTUM = 0.01  # TensorFlow's 0.99, as torch counts it
_MEAN, _STD = 127 / 255, 128 / 255  # (pixel - 127) / 128 of pixels 0..255


class SameConvolution(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same": an odd row goes to the end."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, groups: int) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inner, outer, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [N, O, ceil(H / stride), ceil(W / stride)] of x float32 [N, C, H, W]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride > 1:
            missing = [
                max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[:1:-1]
            ]
            pads = [side for total in missing for side in (total // 2, total - total // 2)]
            x = functional.pad(x, pads)
        return super().forward(x)


class ConvolutionBlock(nn.Sequential):
    """A convolution, its batch normalisation and, where it is not linear, ReLU6."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        groups = inner if depthwise else 1
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            convolution=SameConvolution(inner, outer, kernel, stride, groups),
            norm=nn.BatchNorm2d(outer, _NORM_EPSILON, _NORM_MOMENTUM),
        )
        if not linear:
            layers["activation"] = nn.ReLU6()
        super().__init__(layers)


class InvertedResidual(nn.Sequential):
    """Expands the channels, convolves each alone, and projects them (Sandler et al. 2018).

    Where shape and stride allow it, the input is added to the output.
    """

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        width = inner * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers["expand"] = ConvolutionBlock(inner, width, 1)
        layers["depthwise"] = ConvolutionBlock(width, width, kernel, stride, depthwise=True)
        layers["project"] = ConvolutionBlock(width, outer, 1, linear=True)
        super().__init__(layers)
        self.has_shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [N, outer, H / stride, W / stride] of x float32 [N, inner, H, W]."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y if self.has_shortcut else y


def efficientnet_lite0() -> nn.Sequential:
    """Return the network without its last layer: images float32 [N, 3, H, W] in 0..1 -> [N, 1280].

    The features are averages of ReLU6 outputs, so none is below 0. The images are scaled as those
    that the published weights were trained on.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise([_MEAN] * 3, [_STD] * 3), stem=ConvolutionBlock(3, _STEM, 3, 2)
    )
    channels = _STEM
    number = 0
    for count, kernel, first_stride, expansion, outer in _STAGES:
        for stride in (first_stride, *[1] * (count - 1)):
            layers[f"block_{number}"] = InvertedResidual(channels, outer, kernel, stride, expansion)
            channels, number = outer, number + 1
    layers["top"] = ConvolutionBlock(channels, FEATURES, 1)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def rename_published(name: str) -> str:
    """Return our name of a tensor of the published state dict; `_fc` becomes `classifier`."""
    parts = {
        "_conv_stem": "stem.convolution",
        "_bn0": "stem.norm",
        "_conv_head": "top.convolution",
        "_bn1": "top.norm",
        "_fc": "classifier",
    }
    block_parts = {
        "_expand_conv": "expand.convolution",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.convolution",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.convolution",
        "_bn2": "project.norm",
    }
    first, *rest = name.split(".")
    if first == "_blocks" and len(rest) == 3:
        number, layer, tensor = rest
        return f"block_{number}.{block_parts.get(layer, layer)}.{tensor}"
    return ".".join([parts.get(first, first), *rest])
