"""Adds softmax and argmax behind the logits of `model.onnx`. Knows no weights and no fit."""

import numpy as np
import onnx

from model.graphs.softmax_temperature import LABELS, PROBABILITIES, temperature_input
from training.export.onnx_nodes import Nodes


def add_calibrated_softmax(graph: onnx.GraphProto, logits: str) -> None:
    """Add the outputs PROBABILITIES and LABELS of the value `logits`, float32 [N, K].

    The temperature is an input, 1 where it is not fed, so that one graph is run calibrated or not.
    """
    nodes = Nodes(graph, "classification/")
    ((scale, default),) = temperature_input(1.0).items()
    scaled = nodes.node("Mul", logits, nodes.input(scale, default))
    probabilities = nodes.node("Softmax", scaled, axis=-1, output=PROBABILITIES)
    nodes.node("ArgMax", probabilities, axis=-1, keepdims=0, output=LABELS)
    nodes.output(PROBABILITIES, ["batch", "classes"])
    nodes.output(LABELS, ["batch"], np.int64)
