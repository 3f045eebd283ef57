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
from onnx import TensorProto, helper

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
from training.export.onnx_nodes import HEAD_OPSET, IR_VERSION, Nodes
from training.export.ood_statistics import (
    STATISTICS,
    THUMBNAIL_SIZE,
    evenly_spread,
    names_with_layers,
)
from training.export.serving_graphs import finish_graphs

_FEW_UNITS = 64
"""Up to so many units of the first dense layer, the weights are multiplied by the features once an
image; above, the masks are multiplied by the features instead, which then takes less memory."""
_ACTIVATIONS = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Gelu", "Mish", "Clip", "Tanh"),
}


def tapped_values(network: NetworkGraph) -> list[str]:
    """Return the feature maps whose means belong to the statistics.

    They are among the outputs of activations behind convolutions, or of the convolutions where
    there are none.
    """
    maps = [
        (node, value)
        for node in network.graph.node
        for value in node.output[:1]
        if len(network.shapes.get(value, ())) == 4 and min(network.shapes[value][2:]) > 1
    ]
    candidates = [value for node, value in maps if node.op_type in _ACTIVATIONS]
    return evenly_spread(candidates or [value for node, value in maps if node.op_type == "Conv"])


def names_of_statistics(network: NetworkGraph) -> list[str]:
    """Return where the statistics come from, in their order, as the manifest records it."""
    return names_with_layers(plain_name(each) for each in tapped_values(network))


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
    taps = tapped_values(network) if with_statistics else []
    graph = helper.make_graph([], "network", [_value("images", image.shape)], [])
    before, after = Nodes(graph, "before/"), Nodes(graph, "after/")
    given = image.add_nodes(before.node, "images", rule)
    before.node("Identity", given, output=image.name)
    _add_needed(graph, network, [cut.features, cut.tail.logits, *taps])
    features = cut.features
    if cut.first_dense.pooled:
        features = after.node("GlobalAveragePool", features)
    after.node("Flatten", features, output="features")
    after.node("Flatten", cut.tail.logits, output="logits")
    after.output("logits", ["batch", cut.tail.classes])
    after.output("features", ["batch", cut.widths[0]])
    if with_statistics:
        statistics = _add_statistics(after, image, taps, network, cut.widths[0])
        after.output(STATISTICS, ["batch", statistics])
    opsets = network.model.opset_import
    _save(graph, folder / MODEL_FILE, opsets, network.model.ir_version)


def _add_needed(graph: onnx.GraphProto, network: NetworkGraph, values: Sequence[str]) -> None:
    """Add the network's own nodes that compute `values`, with their constants."""
    nodes = [dropout_as_identity(node) for node in network.needed_nodes(values)]
    needed = {value for node in nodes for value in node.input}
    needed |= {each for node in nodes for each in captured_values(node)}
    graph.node.extend(nodes)
    graph.initializer.extend(each for each in network.graph.initializer if each.name in needed)


def _write_head(cut: Cut, folder: Path, network: NetworkGraph) -> None:
    """Write `head.onnx`: features [N, F], a mask [T, F_i] a dropout layer -> logits [N, T, K]."""
    widths = cut.widths
    inputs = [_value("features", (widths[0],))]
    inputs += [_value(f"mask_{index}", (width,), "samples") for index, width in enumerate(widths)]
    made = helper.make_graph([], "head", inputs, [])
    graph = Nodes(made, "head/")
    steps = list(cut.head)
    value = graph.node("Unsqueeze", "features", np.array([1]))
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
                    value = graph.node("Mul", value, mask)
            case Dense(weight=weight, bias=bias):
                value = graph.node("MatMul", value, weight)
                value = value if bias is None else graph.node("Add", value, bias)
            case Elementwise():
                value = _add_elementwise(graph, step, value, network)
    graph.node("Identity", value, output="logits")
    graph.output("logits", ["batch", "samples", cut.tail.classes])
    opsets = [helper.make_opsetid("", max(HEAD_OPSET, _opset(network.model)))]
    opsets += [each for each in network.model.opset_import if each.domain not in ("", "ai.onnx")]
    _save(made, folder / HEAD_FILE, opsets, IR_VERSION)


def _weighted_once(graph: Nodes, features: str, mask: str, dense: Dense) -> str:
    """Multiply the weights by the features [N, 1, F] once an image, then by all masks.

    Products from the left are computed for each image separately, so images do not influence each
    other.
    """
    weighted = graph.node("Mul", features, dense.weight.T)
    logits = graph.node("MatMul", weighted, graph.node("Transpose", mask, perm=[1, 0]))
    if dense.bias is not None:
        logits = graph.node("Add", logits, dense.bias[:, np.newaxis])
    return graph.node("Transpose", logits, perm=[0, 2, 1])


def _add_elementwise(graph: Nodes, step: Elementwise, value: str, network: NetworkGraph) -> str:
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
        known[node.output[0]] = graph.node(node.op_type, *inputs, **attributes(node))
    return known[step.output]


def _add_normalisation(
    graph: Nodes, node: onnx.NodeProto, value: str, constants: Sequence[NDArray[Any] | None]
) -> str:
    scale, bias, mean, variance = (np.asarray(each, np.float32) for each in constants[1:5])
    factor = scale / np.sqrt(variance + np.float32(attributes(node).get("epsilon", 1e-5)))
    scaled = graph.node("Mul", value, factor)
    return graph.node("Add", scaled, bias - mean * factor)


def _last_axis(constant: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape with which a constant applies to the last axis: [F], [] or [1]."""
    return (constant.size,) if constant.ndim else ()


def _add_statistics(
    graph: Nodes, image: NetworkInput, taps: Sequence[str], network: NetworkGraph, features: int
) -> int:
    """Add the statistics that `training.export.ood_statistics` describes; return their number."""
    parts = [
        graph.node("GlobalAveragePool", "images"),
        graph.node("Sqrt", graph.node("GlobalAveragePool", graph.node("Mul", "images", "images"))),
        *(graph.node("GlobalAveragePool", each) for each in taps),
    ]
    size = [max(1, side // THUMBNAIL_SIZE) for side in image.shape[1:]]
    parts.append(graph.node("AveragePool", "images", kernel_shape=size, strides=size))
    flat = [graph.node("Flatten", each) for each in parts]
    graph.node("Concat", *flat, "features", output=STATISTICS, axis=1)
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
