"""Puts a trained head behind an ONNX network that gives features, as nodes of the same graph."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from training.adoption.network_file import PREFIX, plain_name
from training.network.classifier import Head
from training.transfer.classifier_removal import FEATURES
from training.transfer.feature_standardisation import Standardisation

_LAYER = f"{PREFIX}dropserve/layer"
FIRST_LAYER = plain_name(f"{_LAYER}_0")
"""The name of the head's first dense layer, for `training.adoption.graph_cut.choose_cut`."""


def graft_head(
    network: onnx.ModelProto, head: Head, standardisation: Standardisation | None
) -> onnx.ModelProto:
    """Return the network with the head's dropout, dense layers and ReLUs; its output are logits.

    Args:
        network: its output is FEATURES; is not changed.
        head: on the CPU; its activation is ReLU.
        standardisation: of the features before the head; None: it takes them as they are.
    """
    joined = onnx.ModelProto()
    joined.CopyFrom(network)
    graph, value = joined.graph, FEATURES

    index = 0

    def add(operator: str, *arrays: NDArray[np.float32], **options: Any) -> None:
        nonlocal value
        name = f"{_LAYER}_{index}" + ("" if operator == "Gemm" else f"/{operator}")
        names = [f"{name}/{place}" for place in range(len(arrays))]
        for each, array in zip(names, arrays, strict=True):
            graph.initializer.append(numpy_helper.from_array(array, each))
        graph.node.append(helper.make_node(operator, [value, *names], [name], name, **options))
        value = name

    if standardisation is not None:
        add("Sub", standardisation.mean)
        add("Mul", standardisation.factor)
    for index, layer in enumerate(head.layers):
        assert isinstance(layer, nn.Linear)
        if index > 0:
            add("Relu")
        if index < head.dropout_count:
            add("Dropout", np.array(head.dropout.p, np.float32))
        weight, bias = (each.detach().numpy() for each in (layer.weight, layer.bias))
        add("Gemm", weight, bias, transB=1)
    batch = network.graph.output[0].type.tensor_type.shape.dim[0]
    graph.ClearField("output")
    shape = [batch.dim_value or "batch", head.widths[-1]]
    graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))
    return joined
