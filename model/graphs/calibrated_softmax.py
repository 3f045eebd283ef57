"""A network's logits -> its classification, as nodes behind its own. Knows no weights.

In float32, like the logits: the tensors of the Open Inference Protocol, with no call of their own.
`Prediction.probabilities` has float64 for everything else.
"""

from functools import lru_cache

import numpy as np

from model.graphs.encoding import Graph
from model.graphs.mc_statistics import Feeds

_PREFIX = "classification/"
_SCALE = _PREFIX + "scale"

OUTPUTS = _PREFIX + "probabilities", _PREFIX + "labels"
"""Outputs: softmax of the logits over the temperature, float32 [N, K]; the first of the highest,
int64 [N]."""


def behind(logits: str) -> bytes:
    """Encode what is put behind a model's bytes to classify by its value `logits` [N, K]."""
    graph = Graph(_PREFIX)
    scaled = graph.node("Mul", logits, graph.input("scale", [1]))
    probabilities = graph.node("Softmax", scaled, axis=-1, name="probabilities")
    graph.node("ArgMax", probabilities, axis=-1, keepdims=0, name="labels")
    graph.output("probabilities", ["batch", "classes"])
    graph.output("labels", ["batch"], np.int64)
    return graph.appended()


@lru_cache(maxsize=64)
def scaling(temperature: float) -> Feeds:
    """Return the input that the logits are multiplied by."""
    return {_SCALE: np.array([1 / temperature], np.float32)}
