"""Names and input of the softmax that ends `model.onnx`. Knows no weights and no nodes.

`training.export.softmax_nodes` adds the nodes. The probabilities are float32, like the
logits: the Open Inference Protocol outputs them as they are, without another call. Everything else
uses `Prediction.probabilities`, which are float64.
"""

from model.graphs.mc_statistics import Feeds, scale_input

SCALE = "classification/scale"
"""Input by which the logits are multiplied, 1 / temperature, float32 [1]; 1 where it is not fed."""

PROBABILITIES, LABELS = OUTPUTS = "classification/probabilities", "classification/labels"
"""Outputs: the softmax of logits / temperature, float32 [N, K], and the index of the first class
with the highest probability, int64 [N]."""


def temperature_input(temperature: float) -> Feeds:
    """Return the input SCALE, see `scale_input`."""
    return scale_input(SCALE, temperature)
