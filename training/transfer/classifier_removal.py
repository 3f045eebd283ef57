"""Cuts the classifier off an ONNX network, so that what is left computes features.

What is cut off is the last dense layer and what follows it. A network that ends in something else
gives features as it is. Knows no head that takes the place of the classifier.
"""

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from model.errors import ExportError
from training.adoption.graph_cut import Dense, Elementwise, Tail, class_output, follow_tail
from training.adoption.input_layout import Layout
from training.adoption.network_file import PREFIX, plain_name
from training.adoption.network_graph import NetworkGraph, captured_values

FEATURES = f"{PREFIX}dropserve/features"
"""The only output of a network that was cut, float32 [N, F]."""


@dataclass(frozen=True)
class FeatureCut:
    """Which value of a network has the features of an image."""

    value: str
    """A vector of units, or a feature map whose averages are the features."""
    width: int
    """The number of features F."""
    map_layout: Layout | None
    """Of a feature map; None for a vector."""
    classifier: Dense | None
    """The dense layer that is cut off; None: there is none."""


def find_features(network: NetworkGraph, layout: Layout) -> FeatureCut:
    """Find the input of the last dense layer, or the output of a network without a classifier.

    Args:
        network: after `observe`.
        layout: of the images, and so of an output that is a feature map.

    Raises:
        ExportError: the output is neither a vector nor a feature map, or there are several.
    """
    outputs = [each.name for each in network.graph.output]
    output = outputs[0] if len(outputs) == 1 else class_output(network)
    tail = follow_tail(network, output)
    if tail.dense_layers and _ends_in_classifier(network, tail):
        last = tail.dense_layers[-1]
        map_layout: Layout | None = "nchw" if last.pooled else None
        return FeatureCut(last.input, last.weight.shape[0], map_layout, last)
    shape = network.shapes[output]
    large = [size for size in shape[1:] if size != 1]
    if len(large) == 1:
        return FeatureCut(output, large[0], None, None)
    if len(shape) == 4:
        return FeatureCut(output, shape[1 if layout == "nchw" else 3], layout, None)
    raise ExportError(
        f"The network's output {plain_name(output)} of shape {list(shape)} is neither one vector "
        "an image nor a feature map, so it gives no features; export it with a vector as output."
    )


def _ends_in_classifier(network: NetworkGraph, tail: Tail) -> bool:
    """Return whether no activation but a sigmoid follows the last dense layer."""
    last = max(place for place, step in enumerate(tail.steps) if isinstance(step, Dense))
    after = [step for step in tail.steps[last + 1 :] if isinstance(step, Elementwise)]
    activations = [step for step in after if step.is_activation]
    producer = network.producers.get(tail.logits)
    ends_in_sigmoid = producer is not None and producer.op_type == "Sigmoid"
    return len(activations) == ends_in_sigmoid


def cut_network(network: NetworkGraph, cut: FeatureCut) -> onnx.ModelProto:
    """Return the network up to its features, which are its only output, FEATURES."""
    value, nodes = cut.value, network.needed_nodes([cut.value])
    steps: list[tuple[str, dict[str, Any]]] = [("Flatten", {})]
    if cut.map_layout is not None:
        steps.insert(0, ("GlobalAveragePool", {}))
    if cut.map_layout == "nhwc":
        steps.insert(0, ("Transpose", {"perm": [0, 3, 1, 2]}))
    for place, (operator, options) in enumerate(steps, 1):
        output = FEATURES if place == len(steps) else f"{FEATURES}/{place}"
        nodes.append(helper.make_node(operator, [value], [output], output, **options))
        value = output
    batch = network.graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    left = onnx.ModelProto()
    left.CopyFrom(network.model)
    graph = left.graph
    needed = {each for node in nodes for each in (*node.input, *captured_values(node))}
    arrays = [each for each in network.graph.initializer if each.name in needed]
    for field, content in (("node", nodes), ("initializer", arrays)):
        graph.ClearField(field)
        getattr(graph, field).extend(content)
    graph.ClearField("output")
    graph.ClearField("value_info")
    width = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [batch, cut.width])
    graph.output.append(width)
    return left
