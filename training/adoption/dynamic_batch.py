"""Lets a network that was exported for a fixed number of images take any number."""

import numpy as np
import onnx
from onnx import numpy_helper

from training.adoption.network_graph import NetworkGraph, attributes


def free_batch(network: NetworkGraph) -> None:
    """Replace the fixed number of images in the graph's input, outputs and reshapings.

    What else depends on the number is not found here; the caller compares the answers.

    Args:
        network: after `observe`; changed in place.
    """
    graph = network.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for value in (*graph.input, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions:
            dimensions[0].dim_param = "batch"
    del graph.value_info[:]  # they state the fixed number; every reader infers them again
    if batch:
        for node in graph.node:
            if node.op_type in ("Reshape", "Expand"):
                _free_shape(network, node, batch)


def _free_shape(network: NetworkGraph, node: onnx.NodeProto, batch: int) -> None:
    """Let the first dimension of a reshaping follow the number of images."""
    shape = network.constant(node.input[1])
    source = network.shapes.get(node.input[0], ())
    if shape is None or shape.ndim != 1 or len(shape) == 0 or shape[0] != batch:
        return
    if node.op_type == "Expand":
        follows = source[:1] == (batch,)
        freed = np.array([1, *shape[1:]], np.int64)
    else:
        means_zero = bool(attributes(node).get("allowzero", 0))
        follows = source[:1] == (batch,) and not (means_zero and 0 in shape)
        freed = np.array([0, *shape[1:]], np.int64)
    if follows:
        kept = [each for each in node.attribute if each.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
        name = f"{node.output[0]}/shape"
        network.graph.initializer.append(numpy_helper.from_array(freed, name))
        node.input[1] = name
