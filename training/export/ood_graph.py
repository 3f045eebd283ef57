"""Puts the out-of-distribution (OOD) score into `model.onnx`, behind the trunk's statistics.

The trunk is exported with an output of statistics; it is replaced by the score, so that the service
gets one number per image from the run that it makes anyway. Knows no training and no calibration.

Rows must not influence each other. ONNX Runtime rounds some operations differently in batches of
another size (`training.export.mc_statistics_graph`), so logarithms, sums over other axes than the
last one and products with a single column are not used here.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from model.container_resources import available_processors
from model.graphs.sessions import create_session
from model.inference.predictor import OOD_SCORES
from training.export.onnx_nodes import Nodes
from training.export.ood_score import OodScore
from training.export.ood_statistics import STATISTICS


def count_statistics(path: Path) -> int:
    """Return S, the number of statistics that the graph in `path` gives of an image."""
    outputs = {each.name: each for each in onnx.load(path).graph.output}
    return int(outputs[STATISTICS].type.tensor_type.shape.dim[1].dim_value)


def read_statistics(
    path: Path, batches: Iterable[NDArray[np.float32]]
) -> Sequence[NDArray[np.float32]]:
    """Run the graph in `path`; return the statistics, float32 [N, S], and the logits [N, K].

    Args:
        path: of a graph that still has the statistics as output.
        batches: of N images together, each float32 [B, C, H, W] in 0..1.
    """
    session = create_session(path.read_bytes(), available_processors())
    outputs = [session.run([STATISTICS, "logits"], {"images": images}) for images in batches]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def add_score(path: Path, score: OodScore) -> None:
    """Replace the output of statistics in the graph in `path` by OOD_SCORES, float32 [N]."""
    model = onnx.load(path)
    graph = Nodes(model.graph, "ood/")
    graph.remove_output(STATISTICS)
    last = graph.integers(-1)
    scaled = graph.node("Mul", STATISTICS, graph.array(score.scale))
    points = graph.node("Add", scaled, graph.array(score.shift))
    projection, offset = graph.array(score.projection), graph.array(score.offset)
    projected = graph.node("Gemm", points, projection, offset)
    parts = graph.split(projected, score.sizes)
    varying, separating, pixels, total = (
        graph.node("ReduceSumSquare", value, last)
        for value in (parts[0], parts[1], parts[3], points)
    )
    distances = graph.node(
        "Concat",
        graph.node("Sub", total, varying),
        graph.node("Sub", separating, graph.node("ReduceMax", parts[2], last)),
        pixels,
        graph.node("Neg", graph.node("ReduceMax", "logits", last)),
        axis=1,
    )
    clipped = graph.node("Min", distances, graph.array(score.limits))
    repeat, knots = (
        graph.array(_repeat_matrix(*score.knots.shape)),
        graph.array(-score.knots.ravel()),
    )
    excess = graph.node("Relu", graph.node("Gemm", clipped, repeat, knots))
    weighted = graph.node("Mul", excess, graph.array(-score.slopes.ravel()))
    graph.node("ReduceSum", weighted, last, output=OOD_SCORES, keepdims=0)
    graph.output(OOD_SCORES, ["batch"])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _repeat_matrix(rows: int, times: int) -> NDArray[np.float32]:
    """Return the matrix [rows, rows * times] that repeats each of `rows` numbers."""
    return np.repeat(np.eye(rows, dtype=np.float32), times, axis=1)
