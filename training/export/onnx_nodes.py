"""Adds nodes, constants, inputs and outputs to an ONNX graph. Knows no computation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

HEAD_OPSET, IR_VERSION = 20, 10
"""Of the graphs that are built here: the statistics are also added to the head."""


class Nodes:
    """Adds to a graph in the order of computation; values are known by their names."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        """Start behind the nodes of a graph.

        prefix: begins the names that are made up, so that they are those of no other value.
        """
        self._graph = graph
        self._prefix = prefix
        self._count = 0

    def input(self, name: str, default: NDArray[np.float32]) -> str:
        """Declare an input that has a value where it is not fed; return its name."""
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, default.shape)
        self._graph.input.append(value)
        self._graph.initializer.append(numpy_helper.from_array(default, name))
        return name

    def array(self, values: NDArray[np.generic]) -> str:
        """Add a constant; return its name."""
        name = self._new_name()
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def float32(self, values: ArrayLike) -> str:
        """Add a float32 constant; return its name."""
        return self.array(np.asarray(values, np.float32))

    def integers(self, *values: int) -> str:
        """Add a constant, int64 [number of values]; return its name."""
        return self.array(np.array(values, np.int64))

    def node(
        self,
        operator: str,
        *inputs: str | NDArray[np.generic],
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one output, and its inputs where they are arrays; return the output."""
        names = [each if isinstance(each, str) else self.array(each) for each in inputs]
        name = output or self._new_name()
        self._graph.node.append(helper.make_node(operator, names, [name], name, **attributes))
        return name

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Split a value [N, M, …] into parts of the given sizes along its second axis."""
        names = [self._new_name() for _ in sizes]
        inputs = [value, self.integers(*sizes)]
        self._graph.node.append(helper.make_node("Split", inputs, names, names[0], axis=1))
        return names

    def output(
        self, name: str, shape: Sequence[int | str], dtype: type[np.generic] = np.float32
    ) -> None:
        """Declare the value of that name an output.

        shape: a dimension is a number, or a name where it may vary.
        """
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def remove_output(self, name: str) -> None:
        """Let `name` no longer be an output; it stays a value."""
        (index,) = (index for index, each in enumerate(self._graph.output) if each.name == name)
        del self._graph.output[index]

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"
