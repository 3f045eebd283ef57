"""A network's graph with the look-ups that cutting it needs: producers, constants, shapes.

Knows no classifier: what is a dense layer, `training.adoption.graph_cut` decides.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from model.container_resources import available_processors
from model.errors import ExportError
from model.graphs import sessions

Array = NDArray[Any]

_NEWER_OPSET = "ValidateOpsetForDomain"
"""What ONNX Runtime names where an operator set is newer than it is."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def create_session(model: onnx.ModelProto, threads: int | None = None) -> sessions.Session:
    """Start ONNX Runtime on a network.

    Args:
        model: the network.
        threads: how many compute one run; None: one for each processor.

    Raises:
        ExportError: it cannot run it.
    """
    try:
        return sessions.create_session(model.SerializeToString(), threads or available_processors())
    except Exception as error:  # ONNX Runtime raises its own untyped exceptions
        reason = str(error).partition("\n")[0]
        if _NEWER_OPSET in reason:
            opsets = ", ".join(
                f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import
            )
            raise ExportError(
                f"ONNX Runtime does not know the operator set of the network yet ({opsets}); "
                "export it again with a lower opset_version."
            ) from None
        raise ExportError(
            f"ONNX Runtime cannot load the network ({reason}); export it again with standard "
            "operators."
        ) from None


def dropout_as_identity(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the node; a dropout becomes the identity, which it is on average."""
    if node.op_type != "Dropout":
        return node
    return helper.make_node("Identity", node.input[:1], node.output[:1], node.name)


def without_dropout(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a network in which no dropout is left."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.CopyFrom(dropout_as_identity(node))
    return copy


class NetworkGraph:
    """The graph of a normalised network (`training.adoption.network_file`)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph: onnx.GraphProto = model.graph
        self._arrays = {each.name: each for each in self.graph.initializer}
        self.producers = {value: node for node in self.graph.node for value in node.output if value}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every value in the last `observe` but sequences."""
        self.halves: set[str] = set()
        """The values that were of float16 then."""

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each value's node in the order of computation."""
        return {value: place for place, node in enumerate(self.graph.node) for value in node.output}

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant, also of one that nodes compute; None: it varies."""
        if name in self._arrays:
            return numpy_helper.to_array(self._arrays[name])
        nodes = self.needed_nodes([name])
        needed = {value for node in nodes for value in node.input}
        if not nodes or needed & {each.name for each in self.graph.input}:
            return None
        arrays = [each for each in self.graph.initializer if each.name in needed]
        output = onnx.ValueInfoProto(name=name)
        part = helper.make_graph(nodes, "constant", [], [output], arrays)
        model = helper.make_model(
            part, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        try:
            return np.asarray(create_session(model, threads=1).run([name], {})[0])
        except Exception:  # such as a sequence, or an operator without a kernel
            return None

    def inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a node that vary."""
        return [each for each in node.input if each and self.constant(each) is None]

    def needed_nodes(self, values: Iterable[str]) -> list[onnx.NodeProto]:
        """Return the nodes that compute `values`, in order."""
        needed, pending = set(), list(values)
        while pending:
            value = pending.pop()
            node = self.producers.get(value)
            if node is None or id(node) in needed:
                continue
            needed.add(id(node))
            pending += [each for each in node.input if each]
            pending += captured_values(node)
        return [node for node in self.graph.node if id(node) in needed]

    def count_parameters(self) -> int:
        """Return how many numbers the network's constant arrays of floats have."""
        arrays = [each for each in self.graph.initializer if each.dims]
        floats = [each for each in arrays if numpy_helper.to_array(each).dtype.kind == "f"]
        return sum(int(np.prod(each.dims)) for each in floats)

    def observe(self, feed: Array) -> None:
        """Run the network once, and note the shape of every value.

        Raises:
            ExportError: it cannot run.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        names = [value for node in self.graph.node for value in node.output if value]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = create_session(model)
        try:
            results = session.run(names, {self.graph.input[0].name: feed})
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ExportError(
                f"The network does not run on images of shape {list(feed.shape)} ({reason}); name "
                "another size of images, or their layout with --layout."
            ) from None
        observed = dict(zip(names, results, strict=True))
        arrays = {name: each for name, each in observed.items() if isinstance(each, np.ndarray)}
        self.shapes = {name: each.shape for name, each in arrays.items()}
        self.halves = {name for name, each in arrays.items() if each.dtype == np.float16}


def captured_values(node: onnx.NodeProto) -> list[str]:
    """Return the values that the sub-graphs of a node (If, Loop) may take from outside."""
    graphs = [each.g for each in node.attribute if each.HasField("g")]
    graphs += [graph for each in node.attribute for graph in each.graphs]
    inner = [each for graph in graphs for each in graph.node]
    names = [value for each in inner for value in (*each.input, *captured_values(each))]
    return names + [each.name for graph in graphs for each in graph.output]
