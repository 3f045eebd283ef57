"""Writes the graphs of a bundle from a network that was cut.

`model.onnx` has the network's own nodes, so it computes the same numbers; before them stands the
preprocessing, and beside them what the out-of-distribution score is fitted to. `head.onnx` computes
the steps from the cut on for many masks at once. Measures nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model.bundle.store import HEAD_FILE, MODEL_FILE
from model.errors import ExportError
from training.adoption.graph_cut import Cut, Dense, Dropout, Elementwise
from training.adoption.input_layout import NetworkInput, Preprocessing
from training.adoption.network_file import plain_name
from training.adoption.network_graph import (
    NetworkGraph,
    attributes,
    captured_values,
    dropout_as_identity,
)
from training.export.ood_statistics import MAX_TAPPED_LAYERS, STATISTICS, THUMBNAIL_SIZE
from training.export.serving_graphs import finish_graphs

_HEAD_OPSET = 20
_IR_VERSION = 10
_FEW_UNITS = 64
"""Up to so many units of the first dense layer, the weights are multiplied by the features once an
image; above, the masks are multiplied by the features instead, which then takes less memory."""
_ACTIVATIONS = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Gelu", "Mish", "Clip", "Tanh"),
}


class _Graph:
    """A list of nodes and constants under construction."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []

    def add(
        self, operator: str, *inputs: str | NDArray[Any], output: str = "", **options: Any
    ) -> str:
        """Add a node with one output, and its inputs where they are arrays; return the output."""
        names = [each if isinstance(each, str) else self.array(each) for each in inputs]
        output = output or self._new_name()
        self.nodes.append(helper.make_node(operator, names, [output], output, **options))
        return output

    def array(self, values: NDArray[Any]) -> str:
        """Add a constant; return its name."""
        name = self._new_name()
        self.arrays.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def tapped_values(network: NetworkGraph) -> list[str]:
    """Return the feature maps whose means belong to the statistics, at most MAX_TAPPED_LAYERS.

    They are the outputs of activations behind convolutions, or of the convolutions where there are
    none, spread evenly over all but the last one.
    """
    maps = [
        (node, value)
        for node in network.graph.node
        for value in node.output[:1]
        if len(network.shapes.get(value, ())) == 4 and min(network.shapes[value][2:]) > 1
    ]
    candidates = [value for node, value in maps if node.op_type in _ACTIVATIONS]
    candidates = candidates or [value for node, value in maps if node.op_type == "Conv"]
    candidates = candidates[:-1] or candidates
    count = min(MAX_TAPPED_LAYERS, len(candidates))
    places = np.linspace(0, len(candidates) - 1, count).round().astype(int)
    return [candidates[place] for place in places]


def names_of_statistics(network: NetworkGraph) -> list[str]:
    """Return where the statistics come from, in their order, as the manifest records it."""
    taps = [plain_name(each) for each in tapped_values(network)]
    return ["pixels", *taps, "thumbnail", "features"]


def write_graphs(
    network: NetworkGraph,
    image: NetworkInput,
    rule: Preprocessing,
    cut: Cut,
    folder: Path,
    with_statistics: bool,
) -> None:
    """Write the finished graphs of a bundle.

    Args:
        network: after `free_batch`.
        image: the input of the network.
        rule: how pixels become the network's numbers.
        cut: where the head begins.
        folder: folder to write into.
        with_statistics: whether `model.onnx` has the output that `training.export.ood_graph`
            replaces.

    Raises:
        ExportError: a graph fails the ONNX checker.
    """
    _write_trunk(network, image, rule, cut, folder, with_statistics)
    _write_head(cut, folder, network)
    finish_graphs(folder)


def _write_trunk(
    network: NetworkGraph,
    image: NetworkInput,
    rule: Preprocessing,
    cut: Cut,
    folder: Path,
    with_statistics: bool,
) -> None:
    """Write `model.onnx`: images [N, C, H, W] in 0..1 -> logits, features and statistics."""
    before, after = _Graph("before/"), _Graph("after/")
    given = image.add_nodes(before.add, "images", rule)
    before.add("Identity", given, output=image.name)
    features = cut.features
    if cut.first_dense.pooled:
        features = after.add("GlobalAveragePool", features)
    after.add("Flatten", features, output="features")
    after.add("Flatten", cut.tail.logits, output="logits")
    taps = tapped_values(network) if with_statistics else []
    statistics = 0
    if with_statistics:
        statistics = _add_statistics(after, image, taps, network, cut.widths[0])
    nodes = network.needed_nodes([cut.features, cut.tail.logits, *taps])
    nodes = [dropout_as_identity(node) for node in nodes]
    needed = {value for node in nodes for value in node.input}
    needed |= {each for node in nodes for each in captured_values(node)}
    arrays = [each for each in network.graph.initializer if each.name in needed]
    classes = cut.tail.classes
    outputs = {"logits": classes, "features": cut.widths[0]}
    if with_statistics:
        outputs[STATISTICS] = statistics
    graph = helper.make_graph(
        [*before.nodes, *nodes, *after.nodes],
        "network",
        [_value("images", image.shape)],
        [_value(name, (width,)) for name, width in outputs.items()],
        [*before.arrays, *arrays, *after.arrays],
    )
    opsets = network.model.opset_import
    _save(graph, folder / MODEL_FILE, opsets, network.model.ir_version)


def _write_head(cut: Cut, folder: Path, network: NetworkGraph) -> None:
    """Write `head.onnx`: features [N, F], a mask [T, F_i] a dropout layer -> logits [N, T, K]."""
    graph = _Graph("head/")
    steps = list(cut.head)
    value = graph.add("Unsqueeze", "features", np.array([1]))
    masks = 0
    while steps:
        step = steps.pop(0)
        match step:
            case Dropout():
                mask, masks = f"mask_{masks}", masks + 1
                dense = steps[0]
                if isinstance(dense, Dense) and masks == 1 and dense.units <= _FEW_UNITS:
                    steps.pop(0)
                    value = _weighted_once(graph, value, mask, dense)
                else:
                    value = graph.add("Mul", value, mask)
            case Dense(weight=weight, bias=bias):
                value = graph.add("MatMul", value, weight)
                value = value if bias is None else graph.add("Add", value, bias)
            case Elementwise():
                value = _add_elementwise(graph, step, value, network)
    graph.add("Identity", value, output="logits")
    widths = cut.widths
    inputs = [_value("features", (widths[0],))]
    inputs += [_value(f"mask_{index}", (width,), "samples") for index, width in enumerate(widths)]
    classes = cut.tail.classes
    shape: list[str | int] = ["batch", "samples", classes]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    opsets = [helper.make_opsetid("", max(_HEAD_OPSET, _opset(network.model)))]
    opsets += [each for each in network.model.opset_import if each.domain not in ("", "ai.onnx")]
    made = helper.make_graph(graph.nodes, "head", inputs, [output], graph.arrays)
    _save(made, folder / HEAD_FILE, opsets, _IR_VERSION)


def _weighted_once(graph: _Graph, features: str, mask: str, dense: Dense) -> str:
    """Multiply the weights by the features [N, 1, F] once an image, then by all masks.

    Products from the left are computed for each image separately, so images do not influence each
    other.
    """
    weighted = graph.add("Mul", features, dense.weight.T)
    logits = graph.add("MatMul", weighted, graph.add("Transpose", mask, perm=[1, 0]))
    if dense.bias is not None:
        logits = graph.add("Add", logits, dense.bias[:, np.newaxis])
    return graph.add("Transpose", logits, perm=[0, 2, 1])


def _add_elementwise(graph: _Graph, step: Elementwise, value: str, network: NetworkGraph) -> str:
    """Add the nodes of a step behind a value [N, T, F]; return its output."""
    known = {step.input: value}
    for node in step.nodes:
        constants = [
            None if each in known or not each else network.constant(each) for each in node.input
        ]
        if node.op_type == "BatchNormalization":
            known[node.output[0]] = _add_normalisation(graph, node, value, constants)
            continue
        inputs = [
            known.get(name, name) if constant is None else constant.reshape(_last_axis(constant))
            for name, constant in zip(node.input, constants, strict=True)
        ]
        known[node.output[0]] = graph.add(node.op_type, *inputs, **attributes(node))
    return known[step.output]


def _add_normalisation(
    graph: _Graph, node: onnx.NodeProto, value: str, constants: Sequence[NDArray[Any] | None]
) -> str:
    scale, bias, mean, variance = (np.asarray(each, np.float32) for each in constants[1:5])
    factor = scale / np.sqrt(variance + np.float32(attributes(node).get("epsilon", 1e-5)))
    scaled = graph.add("Mul", value, factor)
    return graph.add("Add", scaled, bias - mean * factor)


def _last_axis(constant: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape with which a constant applies to the last axis: [F], [] or [1]."""
    return (constant.size,) if constant.ndim else ()


def _add_statistics(
    graph: _Graph, image: NetworkInput, taps: Sequence[str], network: NetworkGraph, features: int
) -> int:
    """Add the statistics that `training.export.ood_statistics` describes; return their number."""
    parts = [
        graph.add("GlobalAveragePool", "images"),
        graph.add("Sqrt", graph.add("GlobalAveragePool", graph.add("Mul", "images", "images"))),
        *(graph.add("GlobalAveragePool", each) for each in taps),
    ]
    size = [max(1, side // THUMBNAIL_SIZE) for side in image.shape[1:]]
    parts.append(graph.add("AveragePool", "images", kernel_shape=size, strides=size))
    flat = [graph.add("Flatten", each) for each in parts]
    graph.add("Concat", *flat, "features", output=STATISTICS, axis=1)
    places = [side // step for side, step in zip(image.shape[1:], size, strict=True)]
    tapped = sum(network.shapes[each][1] for each in taps)
    return image.channels * (2 + places[0] * places[1]) + tapped + features


def _value(name: str, shape: Sequence[int], first: str = "batch") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *shape])


def _opset(model: onnx.ModelProto) -> int:
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    return int(max(versions))


def _save(graph: onnx.GraphProto, path: Path, opsets: Sequence[Any], ir_version: int) -> None:
    model = helper.make_model(graph, opset_imports=opsets, producer_name="dropserve")
    model.ir_version = ir_version
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and others, from C++
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ExportError(
            f"The network cut in two fails the ONNX checker ({reason}); export it again with a "
            "newer opset_version, or cut it elsewhere with --cut."
        ) from None
    onnx.save(model, path)
