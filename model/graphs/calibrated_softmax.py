"""Softmax and argmax as ONNX nodes that are appended to a network's graph. Knows no weights.

The probabilities are float32, like the logits: the Open Inference Protocol outputs them as they
are, without another call. Everything else uses `Prediction.probabilities`, which are float64.
"""

from functools import lru_cache

import numpy as np

from model.graphs.mc_statistics import Feeds
from model.graphs.onnx_encoding import Graph

_PREFIX = "classification/"
_SCALE = _PREFIX + "scale"

OUTPUTS = _PREFIX + "probabilities", _PREFIX + "labels"
"""Outputs: the softmax of logits / temperature, float32 [N, K], and the index of the first class
with the highest probability, int64 [N]."""


def encode_nodes(logits: str) -> bytes:
    """Encode the nodes that classify by the value `logits`, float32 [N, K].

    The bytes are appended to those of the model that has this value.
    """
    graph = Graph(_PREFIX)
    scaled = graph.node("Mul", logits, graph.input("scale", [1]))
    probabilities = graph.node("Softmax", scaled, axis=-1, name="probabilities")
    graph.node("ArgMax", probabilities, axis=-1, keepdims=0, name="labels")
    graph.output("probabilities", ["batch", "classes"])
    graph.output("labels", ["batch"], np.int64)
    return graph.encode_nodes()


@lru_cache(maxsize=64)
def temperature_input(temperature: float) -> Feeds:
    """Return the input by which the logits are multiplied: 1 / temperature, float32 [1]."""
    return {_SCALE: np.array([1 / temperature], np.float32)}
