"""What a network takes: the size and the layout of its images, and how pixels become its numbers.

The bundle's `model.onnx` takes images float32 [N, C, H, W] in 0..1, so `Preprocessing` is written
both in NumPy, for the network as it was, and as nodes before the network's own ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from model.errors import ExportError
from training.adoption.network_file import plain_name

Layout = Literal["nchw", "nhwc"]

_TYPES: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.UINT8: np.dtype(np.uint8),
}

AddNode = Callable[..., str]
"""Adds a node of an operator with inputs, values or arrays, and returns its output's name."""


@dataclass(frozen=True)
class Preprocessing:
    """x = (pixels * maximum - mean) / std for each channel, pixels in 0..1."""

    maximum: float = 1.0
    """1 or 255: what white is before the mean is subtracted."""
    mean: tuple[float, ...] = (0.0,)
    """One for each channel, or one for all; in the range 0..maximum."""
    std: tuple[float, ...] = (1.0,)
    """The same."""
    bgr: bool = False
    """Whether the network takes blue first. Mean and std are in the network's order."""

    def describe(self) -> str:
        """Return the rule as a text for people."""
        text = f"{'BGR ' if self.bgr else ''}0..{self.maximum:g}"
        if any(self.mean):
            text = f"({text}) - ({', '.join(f'{each:g}' for each in self.mean)})"
        if any(each != 1 for each in self.std):
            text = f"({text}) / ({', '.join(f'{each:g}' for each in self.std)})"
        return text


@dataclass(frozen=True)
class NetworkInput:
    """The single image input of a network."""

    name: str
    layout: Layout
    dtype: np.dtype[Any]
    """float32, or uint8 in 0..255."""
    batch: int | None
    """Images of a run; None: any number."""
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.height, self.width

    def convert(self, images: NDArray[np.float32], rule: Preprocessing) -> NDArray[Any]:
        """Turn images float32 [N, C, H, W] in 0..1 into what the network takes."""
        values = images[:, ::-1] if rule.bgr else images
        mean, std = (np.array(part, np.float32).reshape(-1, 1, 1) for part in (rule.mean, rule.std))
        values = (values * np.float32(rule.maximum) - mean) / std
        if self.layout == "nhwc":
            values = values.transpose(0, 2, 3, 1)
        if self.dtype == np.uint8:
            values = np.rint(values)
        return np.ascontiguousarray(values, self.dtype)

    def add_nodes(self, add: AddNode, images: str, rule: Preprocessing) -> str:
        """Add the nodes that compute the same as `convert`; return the value they give."""
        value = images
        if rule.bgr:
            value = add("Gather", value, np.array([2, 1, 0], np.int64), axis=1)
        if rule.maximum != 1:
            value = add("Mul", value, np.array([rule.maximum], np.float32))
        if any(rule.mean):
            value = add("Sub", value, np.array(rule.mean, np.float32).reshape(-1, 1, 1))
        if any(each != 1 for each in rule.std):
            value = add("Div", value, np.array(rule.std, np.float32).reshape(-1, 1, 1))
        if self.layout == "nhwc":
            value = add("Transpose", value, perm=[0, 2, 3, 1])
        if self.dtype == np.uint8:
            value = add("Cast", add("Round", value), to=TensorProto.UINT8)
        return value


def read_input(
    model: onnx.ModelProto,
    size: tuple[int, int] | None,
    channels: int | None,
    layout: Layout | None,
    option: str = "--size",
    default_size: int | None = None,
) -> NetworkInput:
    """Read the input of a network.

    Args:
        model: normalised by `training.adoption.network_file`.
        size: (height, width) where the network leaves them open; None: those of the network.
        channels: the same; None: those of the network, else 3.
        layout: where the channels are; None: where the network has 1 or 3 of something.
        option: of the user's command that gives `size`.
        default_size: height and width where neither the network nor `size` has them; None: there
            must be one.

    Raises:
        ExportError: it takes no single image, or something is open that must be named.
    """
    value = _only_input(model)
    tensor = value.type.tensor_type
    dimensions = [each.dim_value or None for each in tensor.shape.dim]
    name = plain_name(value.name)
    if len(dimensions) != 4:
        raise ExportError(
            f"The network's input {name} has {len(dimensions)} dimensions, but images have 4, "
            "[N, C, H, W] or [N, H, W, C]; export it with such an input."
        )
    if tensor.elem_type not in _TYPES:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(
            f"The network's input {name} is {kind}, but can only be FLOAT or UINT8; export it in "
            "float32."
        )
    layout = layout or _find_layout(dimensions, name)
    batch, *rest = dimensions
    own_channels, *own_size = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
    found = own_channels or channels or 3
    if found not in (1, 3) or (channels is not None and channels != found):
        raise ExportError(
            f"The network takes images of {found} channels, but 1 (--colour grey) or 3 are "
            "possible, and --colour must agree."
        )
    height, width = (
        _one_size(own, given, default_size, option)
        for own, given in zip(own_size, size or (None, None), strict=True)
    )
    dtype = _TYPES[tensor.elem_type]
    return NetworkInput(value.name, layout, dtype, batch, found, height, width)


def _only_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        names = ", ".join(plain_name(each.name) for each in inputs) or "none"
        raise ExportError(
            f"The network has {len(inputs)} inputs ({names}), but must have one, the images; "
            "export it with the others as constants."
        )
    only: onnx.ValueInfoProto = inputs[0]
    return only


def _find_layout(dimensions: list[int | None], name: str) -> Layout:
    first, last = dimensions[1] in (1, 3), dimensions[3] in (1, 3)
    if first != last:
        return "nchw" if first else "nhwc"
    raise ExportError(
        f"The network's input {name} does not tell where its channels are; name --layout nchw or "
        "--layout nhwc."
    )


def _one_size(own: int | None, given: int | None, default: int | None, option: str) -> int:
    if own is not None and given is not None and own != given:
        raise ExportError(
            f"The network takes images of {own} pixels, not of {given}; leave {option} out."
        )
    size = own or given or default
    if size is None:
        raise ExportError(
            f"The network takes images of any size; name one with {option}, that of its training."
        )
    return size
