"""Puts the out-of-distribution (OOD) score into `model.onnx`, behind the trunk's statistics.

The trunk is exported with an output of statistics; it is replaced by the score, so that the service
gets one number per image from the run that it makes anyway. Knows no training and no calibration.

Rows must not influence each other. ONNX Runtime rounds some operations differently in batches of
another size (`model.graphs.mc_statistics`), so logarithms, sums over other axes than the last one
and products with a single column are not used here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from model.inference.predictor import OOD_SCORES
from training.export.ood_score import OodScore
from training.export.ood_statistics import STATISTICS

_PREFIX = "ood/"
_BATCH_SIZE = 64


def count_statistics(path: Path) -> int:
    """Return S, the number of statistics that the graph in `path` gives of an image."""
    outputs = {each.name: each for each in onnx.load(path).graph.output}
    return int(outputs[STATISTICS].type.tensor_type.shape.dim[1].dim_value)


def read_statistics(path: Path, images: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
    """Run the graph in `path`; return the statistics, float32 [N, S], and the logits [N, K].

    Args:
        path: of a graph that still has the statistics as output.
        images: float32 [N, C, H, W] in 0..1.
    """
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [
        session.run([STATISTICS, "logits"], {"images": images[start : start + _BATCH_SIZE]})
        for start in range(0, len(images), _BATCH_SIZE)
    ]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def add_score(path: Path, score: OodScore) -> None:
    """Replace the output of statistics in the graph in `path` by OOD_SCORES, float32 [N]."""
    model = onnx.load(path)
    graph = _Nodes(model.graph)
    graph.remove_output(STATISTICS)
    projection, offset = graph.array(score.projection), graph.array(score.offset)
    projected = graph.node("Gemm", STATISTICS, projection, offset)
    density, separating, by_class, pixels = graph.split(projected, score.sizes)
    last = graph.integers(-1)
    relative = graph.node(
        "Sub", graph.sum_of_squares(separating, last), graph.node("ReduceMax", by_class, last)
    )
    distances = graph.node(
        "Concat",
        graph.sum_of_squares(density, last),
        relative,
        graph.sum_of_squares(pixels, last),
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
    output = helper.make_tensor_value_info(OOD_SCORES, TensorProto.FLOAT, ["batch"])
    model.graph.output.append(output)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _repeat_matrix(rows: int, times: int) -> NDArray[np.float32]:
    """Return the matrix [rows, rows * times] that repeats each of `rows` numbers."""
    return np.repeat(np.eye(rows, dtype=np.float32), times, axis=1)


class _Nodes:
    """Adds nodes with unique names to a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def remove_output(self, name: str) -> None:
        """Let `name` no longer be an output; it stays a value."""
        (index,) = (index for index, each in enumerate(self._graph.output) if each.name == name)
        del self._graph.output[index]

    def array(self, values: NDArray[np.generic]) -> str:
        """Add a constant; return its name."""
        name = self._new_name()
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant, int64 [number of values]; return its name."""
        return self.array(np.array(values, np.int64))

    def node(
        self, operator: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node with one output; return the output's name."""
        name = output or self._new_name()
        self._graph.node.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def split(self, value: str, sizes: Sequence[int]) -> Sequence[str]:
        """Split a value [N, M] into parts of the given sizes along its last axis."""
        names = [self._new_name() for _ in sizes]
        inputs = [value, self.integers(*sizes)]
        self._graph.node.append(helper.make_node("Split", inputs, names, names[0], axis=1))
        return names

    def sum_of_squares(self, value: str, axes: str) -> str:
        """Add the sum of squares over the last axis, [N, 1]."""
        return self.node("ReduceSumSquare", value, axes)

    def _new_name(self) -> str:
        self._count += 1
        return f"{_PREFIX}{self._count}"
