"""Quantises the convolutions of `model.onnx` to 8-bit integers.

Knows no training and no gate: `training.export.quantization_gate` decides which graph is kept.

Integer arithmetic is exact, so every kernel computes the same numbers, in any batch and with any
number of threads, under two conditions:

- Weights have 7 bits. x86 processors without VNNI add two products in 16 bits, where two products
  of an unsigned and a signed 8-bit number would saturate.
- The first convolution stays in float32, which is faster there, but computes on whole numbers so
  small that no sum of them is ever rounded.

The layers after the last convolution stay in float32, as does `head.onnx`: they cost next to
nothing, and the features that the uncertainty is computed from are not rounded to 8 bits.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

from model.container_resources import available_processors
from model.errors import ExportError
from model.graphs.sessions import create_session

PERCENTILE = 99.999
"""Of each layer's outputs on the calibration images: larger outputs are clipped.

Chosen by the divergence from the float32 predictions for these images, docs/experiments.md.
"""

_WARNINGS, _ERRORS = 2, 3
"""Severities of ONNX Runtime's log; the first is its default."""
_BATCH_SIZE = 32
_MIN_ACTIVE_SHARE = 0.1
"""Least share of a channel's outputs above 0 that its bias correction is divided by."""
_PIXEL_STEPS = 255
"""Steps from the smallest to the largest value of a pixel, which is decoded from a byte."""
_EXACT_FLOAT32 = 2**24
"""Every whole number up to this one is exact in float32."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Returns the calibration images batch by batch, as ONNX Runtime's quantiser reads them."""

    def __init__(self, images: Floats) -> None:
        # The quantiser cannot stack batches of different sizes, so an incomplete last one is left.
        whole = max(1, len(images) // _BATCH_SIZE) * _BATCH_SIZE
        batches = _batches(images[:whole])
        self._feeds: Iterator[dict[str, Floats]] = ({"images": batch} for batch in batches)

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)


def quantize(source: Path, images: Floats, target: Path) -> None:
    """Write the graph in `source` to `target` with quantised convolutions.

    The new graph rounds pixels to multiples of 1/255, the values of decoded images.

    Args:
        source: `model.onnx` of a network with ReLU and convolutions, as exported.
        images: training images, float32 [N, C, H, W] in 0..1; the range of each layer's outputs is
            taken from them.
        target: file to write.

    Raises:
        ExportError: the graph has fewer than two convolutions.
    """
    convolutions = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    if len(convolutions) < 2:
        raise ExportError(f"{source.name} has no convolution behind its first to quantise.")
    with tempfile.TemporaryDirectory() as folder, _silence_onnxruntime():
        draft = Path(folder) / target.name
        quantize_static(
            source,
            draft,
            _CalibrationImages(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv", "Relu", "MaxPool"],
            nodes_to_exclude=[convolutions[0].name, *_nodes_after(source, convolutions[-1].name)],
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
        model = onnx.load(draft)
        _make_first_convolution_exact(model.graph, convolutions[0].name)
        _correct_biases(model, onnx.load(source), images)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _nodes_after(source: Path, name: str) -> list[str]:
    """Return the names of the nodes after a convolution, its activation and its pooling."""
    nodes = list(onnx.load(source).graph.node)
    last = next(index for index, node in enumerate(nodes) if node.name == name)
    tail = nodes[last + 1 :]
    while tail and tail[0].op_type in ("Relu", "MaxPool"):
        tail = tail[1:]
    return [node.name for node in tail]


def _make_first_convolution_exact(graph: onnx.GraphProto, name: str) -> None:
    """Let the first convolution compute on whole numbers, so that no order of summation rounds.

    images -> Sub mean -> Div std -> Conv becomes images -> QuantizeLinear (to bytes) -> Cast -> Sub
    (the byte nearest to the mean) -> Conv. The standard deviation and the remainder of the mean
    move into the convolution's weights and bias. Each of these is rounded to a multiple of a power
    of two, such that the largest possible sum of a channel stays below 2^24 of these multiples.
    """
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    convolution = next(node for node in graph.node if node.name == name)
    mean, std, normalisation = _find_normalisation(graph, convolution, arrays)
    weight, bias = (arrays[each].astype(np.float64) for each in convolution.input[1:])
    mean, std = (np.broadcast_to(each, weight.shape[1]) for each in (mean, std))
    mean_byte = np.rint(_PIXEL_STEPS * mean)
    exact_weight, exact_bias = _exact_weights(weight, bias, mean, std, mean_byte)
    exact = {convolution.input[1]: exact_weight, convolution.input[2]: exact_bias}
    for each in graph.initializer:
        if each.name in exact:
            each.CopyFrom(numpy_helper.from_array(exact[each.name].astype(np.float32), each.name))
    constants = {
        "pixel_step": np.float32(1 / _PIXEL_STEPS),
        "pixel_zero": np.uint8(0),
        "mean_pixel": mean_byte.reshape(1, -1, 1, 1).astype(np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), each) for each, array in constants.items()
    )
    # Not DequantizeLinear, before which ONNX Runtime would quantise the first convolution too.
    make = onnx.helper.make_node
    centring = [
        make("QuantizeLinear", ["images", "pixel_step", "pixel_zero"], ["bytes"], "bytes"),
        make("Cast", ["bytes"], ["pixels"], "pixels", to=onnx.TensorProto.FLOAT),
        make("Sub", ["pixels", "mean_pixel"], [convolution.input[0]], "centred"),
    ]
    remaining = [node for node in graph.node if node not in normalisation]
    del graph.node[:]
    graph.node.extend([*centring, *remaining])
    unused = {node.input[1] for node in normalisation}
    kept = [each for each in graph.initializer if each.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _find_normalisation(
    graph: onnx.GraphProto, convolution: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]
) -> tuple[Doubles, Doubles, list[onnx.NodeProto]]:
    """Return the mean and the standard deviation that pixels are normalised with, and the nodes."""
    mean, std = np.zeros(1), np.ones(1)
    nodes = []
    source = convolution.input[0]
    while source != "images":
        node = next(node for node in graph.node if source in node.output)
        nodes.append(node)
        constant = arrays[node.input[1]].astype(np.float64).ravel()
        mean, std = (constant, std) if node.op_type == "Sub" else (mean, constant)
        source = node.input[0]
    return mean, std, nodes


def _exact_weights(
    weight: Doubles, bias: Doubles, mean: Doubles, std: Doubles, mean_byte: Doubles
) -> tuple[Doubles, Doubles]:
    """Return the rounded weights and bias that take bytes minus `mean_byte` as input.

    Args:
        weight: [O, C, kernel height, kernel width], for normalised pixels.
        bias: [O].
        mean: of the normalisation, [C].
        std: of the normalisation, [C].
        mean_byte: whole numbers [C].
    """
    weight = weight / (_PIXEL_STEPS * std[:, None, None])
    bias = bias + np.einsum("ochw,c->o", weight, mean_byte - _PIXEL_STEPS * mean)
    max_distance = np.maximum(mean_byte, _PIXEL_STEPS - mean_byte)  # of a byte from the mean's
    largest = np.einsum("ochw,c->o", np.abs(weight), max_distance) + np.abs(bias)
    # Rounding may add half a step for each byte, and half a step for the bias.
    slack = 0.5 * (max_distance.sum() * weight.shape[2] * weight.shape[3] + 1)
    step = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30) / (_EXACT_FLOAT32 - slack))))
    grid = step[:, None, None, None]
    return np.rint(weight / grid) * grid, np.rint(bias / step) * step


def _correct_biases(model: onnx.ModelProto, source: onnx.ModelProto, images: Floats) -> None:
    """Move each channel's bias so that its mean output is that of float32 (Nagel et al. 2019, 4.2).

    Layers are corrected in order, each after the layers before it. A bias moves the mean output
    after a ReLU only by the share of outputs above 0, so the correction is divided by that share.
    """
    arrays = {each.name: each for each in model.graph.initializer}
    for convolution in [node for node in model.graph.node if node.op_type == "Conv"][1:]:
        (output,), (_, _, bias) = convolution.output, convolution.input
        expected = _tensor_values(source, output, images)
        active = np.maximum((expected > 0).mean(axis=(0, 2, 3)), _MIN_ACTIVE_SHARE)
        actual = _tensor_values(model, f"{output}_DequantizeLinear_Output", images)
        scale = numpy_helper.to_array(arrays[f"{bias}_quantized_scale"])
        steps = (expected - actual).mean(axis=(0, 2, 3), dtype=np.float64) / active / scale
        quantised = arrays[f"{bias}_quantized"]
        moved = numpy_helper.to_array(quantised) + np.rint(steps).astype(np.int32)
        quantised.CopyFrom(numpy_helper.from_array(moved, quantised.name))


def _tensor_values(model: onnx.ModelProto, name: str, images: Floats) -> Floats:
    """Run images through a graph and return its inner tensor `name`: [N, C, H, W]."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    float32 = onnx.TensorProto.FLOAT
    observed.graph.output.append(onnx.helper.make_tensor_value_info(name, float32, None))
    session = create_session(observed.SerializeToString(), available_processors())
    return np.concatenate([session.run([name], {"images": batch})[0] for batch in _batches(images)])


def _batches(images: Floats) -> Iterator[Floats]:
    return (images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE))


@contextlib.contextmanager
def _silence_onnxruntime() -> Iterator[None]:
    """Suppress the progress that ONNX Runtime's calibration prints, and what it and we log of it.

    Its sessions warn of the temperature, an input with a default.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
        logging.disable(before)
