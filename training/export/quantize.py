"""`model.onnx` in float32 -> the same graph with its convolutions in 8-bit integers.

Knows no training and no gate: `training.export.quantization_gate` decides which of the two is kept.

What is integer is exact, so it gives the same numbers in every kernel, in any batch and with any
number of threads:

- weights have 7 bits, for x86 processors without VNNI add two products in 16 bits, and two of an
  unsigned byte and a full signed one do not fit: they saturate, there and nowhere else;
- the first convolution stays in floats, which are faster there, but computes on whole numbers
  small enough that no sum of them is ever rounded.

What follows the last convolution stays in float32, as does all of `head.onnx`: it costs next to
nothing, and the features that uncertainty comes from are not rounded to 8 bits.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from model.errors import ExportError

PERCENTILE = 99.999
"""Of each layer's outputs on the calibration images: what is larger is cut off.

Chosen by the divergence from float32's answers to those images, docs/experiments.md.
"""

_CHUNK = 32
_FEWEST_ACTIVE = 0.1
"""Share of outputs above 0 from which on a channel's mean says how to move its bias."""
_LEVELS = 255
"""Steps of a pixel: images are decoded from bytes."""
_EXACT = 2**24
"""Every whole number up to this one is a float32."""

Floats = NDArray[np.float32]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the calibration images in chunks."""

    def __init__(self, images: Floats) -> None:
        chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
        self._feeds: Iterator[dict[str, Floats]] = ({"images": chunk} for chunk in chunks)

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)


def quantize(source: Path, images: Floats, target: Path) -> None:
    """Write the graph in `source` to `target` with quantised convolutions.

    Pixels are rounded to multiples of 1/255, which is what decoded images are made of.

    Args:
        source: `model.onnx` of a network with ReLU and convolutions, as exported.
        images: float32 [N, C, H, W] in 0..1, of the training images, from which the range of each
            layer's outputs is taken.
        target: file to write.

    Raises:
        ExportError: the graph has no convolution behind its first.
    """
    convolutions = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    if len(convolutions) < 2:
        raise ExportError(f"{source.name} has no convolution behind its first to quantise.")
    with tempfile.TemporaryDirectory() as folder, _silence():
        draft = Path(folder) / target.name
        quantize_static(
            source,
            draft,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv", "Relu", "MaxPool"],
            nodes_to_exclude=[convolutions[0].name, *_behind(source, convolutions[-1].name)],
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
        model = onnx.load(draft)
    _make_exact(model.graph, convolutions[0].name)
    _correct_biases(model, onnx.load(source), images)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _behind(source: Path, name: str) -> list[str]:
    """Name the nodes behind the last convolution, its activation and its pooling."""
    nodes = list(onnx.load(source).graph.node)
    last = next(index for index, node in enumerate(nodes) if node.name == name)
    tail = nodes[last + 1 :]
    while tail and tail[0].op_type in ("Relu", "MaxPool"):
        tail = tail[1:]
    return [node.name for node in tail]


def _make_exact(graph: onnx.GraphProto, name: str) -> None:
    """Let the first convolution compute on whole numbers: no rounding in any order of summation.

    images -> Sub mean -> Div std -> Conv becomes images -> QuantizeLinear (bytes) ->
    Cast -> Sub (the byte nearest to the mean) -> Conv, with the deviation and the rest of the mean
    inside its weights and bias, each rounded to a multiple of a power of two so that the largest
    possible sum of a channel stays below 2^24 of them.
    """
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    convolution = next(node for node in graph.node if node.name == name)
    mean, std = np.zeros(1), np.ones(1)
    normalising = []
    source = convolution.input[0]
    while source != "images":
        node = next(node for node in graph.node if source in node.output)
        normalising.append(node)
        constant = arrays[node.input[1]].astype(np.float64).ravel()
        mean, std = (constant, std) if node.op_type == "Sub" else (mean, constant)
        source = node.input[0]
    weight, bias = (arrays[name].astype(np.float64) for name in convolution.input[1:])
    mean, std = (np.broadcast_to(each, weight.shape[1]) for each in (mean, std))
    zero = np.rint(_LEVELS * mean)
    weight = weight / (_LEVELS * std[:, None, None])
    bias = bias + np.einsum("ochw,c->o", weight, zero - _LEVELS * mean)
    farthest = np.maximum(zero, _LEVELS - zero)  # of a byte from the mean's
    largest = np.einsum("ochw,c->o", np.abs(weight), farthest) + np.abs(bias)
    # Rounding may add half a step for each byte, and half for the bias.
    slack = 0.5 * (farthest.sum() * weight.shape[2] * weight.shape[3] + 1)
    step = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30) / (_EXACT - slack))))
    grid = step[:, None, None, None]
    exact = {
        convolution.input[1]: np.rint(weight / grid) * grid,
        convolution.input[2]: np.rint(bias / step) * step,
    }
    for each in graph.initializer:
        if each.name in exact:
            each.CopyFrom(numpy_helper.from_array(exact[each.name].astype(np.float32), each.name))
    constants = {
        "pixel_step": np.float32(1 / _LEVELS),
        "pixel_zero": np.uint8(0),
        "mean_pixel": zero.reshape(1, -1, 1, 1).astype(np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), each) for each, array in constants.items()
    )
    # Not DequantizeLinear: ONNX Runtime would take it as leave to quantise the weights behind it.
    make = onnx.helper.make_node
    centring = [
        make("QuantizeLinear", ["images", "pixel_step", "pixel_zero"], ["bytes"], "bytes"),
        make("Cast", ["bytes"], ["pixels"], "pixels", to=onnx.TensorProto.FLOAT),
        make("Sub", ["pixels", "mean_pixel"], [convolution.input[0]], "centred"),
    ]
    others = [node for node in graph.node if node not in normalising]
    del graph.node[:]
    graph.node.extend([*centring, *others])
    unused = {node.input[1] for node in normalising}
    kept = [each for each in graph.initializer if each.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _correct_biases(model: onnx.ModelProto, source: onnx.ModelProto, images: Floats) -> None:
    """Move each channel's bias so that its mean output is float32's (Nagel et al. 2019, 4.2).

    Layer by layer, each behind layers that are corrected. Behind ReLU a mean moves only by the
    share of outputs above 0, by which the step is divided.
    """
    arrays = {each.name: each for each in model.graph.initializer}
    for convolution in [node for node in model.graph.node if node.op_type == "Conv"][1:]:
        (output,), (_, _, bias) = convolution.output, convolution.input
        wanted = _outputs(source, output, images)
        active = np.maximum((wanted > 0).mean(axis=(0, 2, 3)), _FEWEST_ACTIVE)
        given = _outputs(model, f"{output}_DequantizeLinear_Output", images)
        step = numpy_helper.to_array(arrays[f"{bias}_quantized_scale"])
        steps = (wanted - given).mean(axis=(0, 2, 3), dtype=np.float64) / active / step
        quantised = arrays[f"{bias}_quantized"]
        moved = numpy_helper.to_array(quantised) + np.rint(steps).astype(np.int32)
        quantised.CopyFrom(numpy_helper.from_array(moved, quantised.name))


def _outputs(model: onnx.ModelProto, name: str, images: Floats) -> Floats:
    """Return what the tensor `name` is of images: [N, C, H, W]."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    float32 = onnx.TensorProto.FLOAT
    seen.graph.output.append(onnx.helper.make_tensor_value_info(name, float32, None))
    session = onnxruntime.InferenceSession(
        seen.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.concatenate(
        [
            session.run([name], {"images": images[start : start + _CHUNK]})[0]
            for start in range(0, len(images), _CHUNK)
        ]
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """ONNX Runtime's calibration prints its progress, and logs advice that is followed already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
