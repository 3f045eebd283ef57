"""Finds the last dense layers of a classifier, and where its graph is cut into trunk and head.

The graph is followed backwards from its output: first through what turns logits into an answer
(softmax), then through the *tail*, the chain of steps that compute a vector from a vector: dense
layers, functions of single units, dropout. The head begins at a dropout or dense layer of the tail,
and everything before it is the trunk. Writes no graph and chooses no probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from model.errors import ExportError
from training.adoption.network_file import plain_name
from training.adoption.network_graph import NetworkGraph, attributes

OutputKind = Literal["logits", "probabilities", "log-probabilities"]
"""What the network's own output is; it is known by the operator that computes it."""

MAX_HEURISTIC_LAYERS = 2
"""Dense layers, from the last, before which dropout is put where the network has none."""

_ELEMENTWISE = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "HardSigmoid"),
    *("HardSwish", "Gelu", "Mish", "Swish", "Softplus", "Softsign", "ThresholdedRelu", "Clip"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Erf", "Exp", "Neg", "Abs", "Sqrt"),
}
_LINEAR = {"Add", "Sub", "Mul", "Div", "Neg"}
_PASSING = {"Identity", "Cast"}
_RESHAPING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
_SQUASHING: dict[str, OutputKind] = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities"}
_QUANTISED = {
    *("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("QLinearMatMul", "QLinearConv"),
}
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_POOLING = {"GlobalAveragePool", "ReduceMean"}


@dataclass(frozen=True)
class Dense:
    """A dense layer: y = x @ weight + bias."""

    name: str
    """Of its node in the file."""
    weight: NDArray[np.float32]
    """[F, K]."""
    bias: NDArray[np.float32] | None
    """[K]."""
    input: str
    """The value x, or for a convolution before average pooling the feature map that is to be
    averaged to x."""
    pooled: bool = False

    @property
    def units(self) -> int:
        """The number of units K."""
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class Elementwise:
    """Functions of single units: nodes that compute one value from another, unit by unit."""

    nodes: Sequence[onnx.NodeProto]
    input: str
    output: str

    @property
    def is_activation(self) -> bool:
        """Whether it is more than an addition or a product with constants."""
        return any(node.op_type not in _LINEAR for node in self.nodes)


@dataclass(frozen=True)
class Dropout:
    """A dropout layer: of the file, or one that was put in."""

    p: float
    """The probability of zeroing; the file's own."""
    input: str


Step = Dense | Elementwise | Dropout


@dataclass(frozen=True)
class Tail:
    """The end of a network: from a vector of units to the logits."""

    steps: Sequence[Step]
    """In the order of computation."""
    logits: str
    """The value that the last step computes."""
    output: str
    """The network's own output."""
    output_kind: OutputKind

    @property
    def dense_layers(self) -> list[Dense]:
        """The dense layers, in the order of computation."""
        return [step for step in self.steps if isinstance(step, Dense)]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.dense_layers[-1].units


@dataclass(frozen=True)
class Cut:
    """Where a network is cut: the head is the tail from its first dropout layer on."""

    head: Sequence[Step]
    """Begins with a dropout layer."""
    tail: Tail
    trained: bool
    """Whether the file had these dropout layers."""

    @property
    def features(self) -> str:
        """The value that the trunk gives to the head."""
        return self.head[0].input

    @property
    def first_dense(self) -> Dense:
        """The dense layer that the head begins with."""
        return next(step for step in self.head if isinstance(step, Dense))

    @property
    def dropout(self) -> list[Dropout]:
        """The dropout layers, in the order of computation."""
        return [step for step in self.head if isinstance(step, Dropout)]

    @property
    def widths(self) -> list[int]:
        """The number of units of each dropout layer."""
        widths, after = [], list(self.head)
        while after:
            step = after.pop(0)
            if isinstance(step, Dropout):
                dense = next(each for each in after if isinstance(each, Dense))
                widths.append(dense.weight.shape[0])
        return widths


def find_tail(network: NetworkGraph) -> Tail:
    """Find the tail of a classifier.

    Args:
        network: after `observe`.

    Raises:
        ExportError: there is no output of one number a class, or no dense layer before it.
    """
    tail = follow_tail(network, class_output(network))
    last = network.producers.get(tail.logits)
    if tail.output_kind == "logits" and last is not None and last.op_type == "Sigmoid":
        raise ExportError(
            f"The network ends in a sigmoid ({plain_name(last.name or tail.logits)}), so its "
            "classes do not exclude each other; only classifiers with one class an image can be "
            "adopted."
        )
    if not tail.dense_layers:
        raise ExportError(_no_dense_layer(network, tail.logits))
    if network.halves & {tail.logits, *(step.input for step in tail.steps)}:
        raise ExportError(
            "The network computes its last layers in float16, and a bundle computes in float32; "
            "export it with float32 weights."
        )
    return tail


def follow_tail(network: NetworkGraph, output: str) -> Tail:
    """Follow the network backwards from an output; the tail has no steps without dense layers.

    Args:
        network: after `observe`.
        output: name of a value.
    """
    logits, kind = _undo_softmax(network, output)
    steps: list[Step] = []
    value = logits
    while (step := _step(network, value)) is not None:
        steps.insert(0, step)
        value = step.input
        if isinstance(step, Dense) and step.pooled:
            break
    while steps and not isinstance(steps[0], Dense | Dropout):
        steps.pop(0)
    return Tail(_without_unused_dropout(steps), logits, output, kind)


def choose_cut(tail: Tail, node: str | None) -> Cut:
    """Choose where the head begins.

    It begins at the dropout layers that the file has; else before the last dense layer, or before
    the last MAX_HEURISTIC_LAYERS ones where each follows the activation of another.

    Args:
        tail: of the network.
        node: name of a dense layer, of its input or output, before which to cut; None: chosen.

    Raises:
        ExportError: no dense layer of the tail has that name.
    """
    steps = list(tail.steps)
    if node is not None:
        start = _named(steps, node)
        if start > 0 and isinstance(steps[start - 1], Dropout):
            start -= 1
        steps = steps[start:]
    first = next((place for place, each in enumerate(steps) if isinstance(each, Dropout)), None)
    if first is not None and (node is None or first == 0):
        return Cut(steps[first:], tail, trained=True)
    steps = [each for each in steps if not isinstance(each, Dropout)]
    places = [place for place, each in enumerate(steps) if isinstance(each, Dense)]
    if node is None:
        places = [place for place in places if place == places[-1] or _is_hidden(steps, place)]
        places = places[-MAX_HEURISTIC_LAYERS:]
    head: list[Step] = []
    for place, step in enumerate(steps[places[0] :], places[0]):
        if place in places and isinstance(step, Dense):
            head.append(Dropout(0.0, step.input))
        head.append(step)
    return Cut(head, tail, trained=False)


def class_output(network: NetworkGraph) -> str:
    """Return the output with one number a class.

    Raises:
        ExportError: there is none, or there are several.
    """
    names = [each.name for each in network.graph.output]
    vectors = [name for name in names if _width(network, name) > 1]
    if len({_undo_softmax(network, name)[0] for name in vectors}) == 1 < len(vectors):
        # Probabilities, for example, and the logits that they are computed from.
        nodes = {name: network.needed_nodes([name]) for name in vectors}
        vectors.sort(key=lambda name: len(nodes[name]))
        needed = {value for name in vectors for node in nodes[name] for value in node.input}
        vectors = [name for name in vectors if name in needed] or vectors
    if len(vectors) == 1:
        (only,) = vectors
        return str(only)
    shapes = ", ".join(f"{plain_name(name)} {list(network.shapes[name])}" for name in names)
    if not vectors and any(_is_one_score(network, each) for each in network.graph.output):
        raise ExportError(
            f"The network answers with one number an image ({shapes}), not with one a class; give "
            "it two outputs, such as 0 and its logit, and export it again."
        )
    if not vectors:
        raise ExportError(
            f"The network has no output of one number a class, only {shapes}; export the logits of "
            "whole images, [N, K]."
        )
    raise ExportError(
        f"The network has several outputs ({shapes}); export it with its logits as the only one."
    )


def _is_one_score(network: NetworkGraph, output: onnx.ValueInfoProto) -> bool:
    """Return whether an output has one float an image, as [N, 1]."""
    shape = network.shapes.get(output.name, ())
    is_float = output.type.tensor_type.elem_type in _FLOATS
    return is_float and len(shape) > 1 and all(size == 1 for size in shape[1:])


def _width(network: NetworkGraph, name: str) -> int:
    """Return the number of units of a vector [N, K], [N, K, 1, 1] and the like; 0: it is none."""
    shape = network.shapes.get(name, ())[1:]
    large = [size for size in shape if size != 1]
    return (large or [1])[0] if shape and len(large) <= 1 else 0


def _undo_softmax(network: NetworkGraph, output: str) -> tuple[str, OutputKind]:
    value, kind = output, None
    while (node := network.producers.get(value)) is not None:
        squashing = _SQUASHING.get(node.op_type)
        if squashing is not None and kind is None:
            value, kind = node.input[0], squashing
        elif (inner := _decomposed_softmax(network, node)) is not None and kind is None:
            value, kind = inner, "probabilities"
        elif _passes(network, node):
            value = node.input[0]
        else:
            break
    return value, kind or "logits"


def _decomposed_softmax(network: NetworkGraph, node: onnx.NodeProto) -> str | None:
    """Return the input of a softmax that is written as a quotient of exponentials."""
    if node.op_type != "Div":
        return None
    powers, total = (network.producers.get(name) for name in node.input)
    if powers is None or total is None or powers.op_type != "Exp":
        return None
    if total.op_type != "ReduceSum" or total.input[0] != powers.output[0]:
        return None
    shifted = network.producers.get(powers.input[0])
    if shifted is not None and shifted.op_type == "Sub":
        largest = network.producers.get(shifted.input[1])
        if largest is not None and largest.op_type == "ReduceMax":
            return str(shifted.input[0])
    return str(powers.input[0])


def _step(network: NetworkGraph, value: str) -> Step | None:
    """Return the step of the tail that computes a value; None: another kind of node does."""
    node = network.producers.get(value)
    while node is not None and _passes(network, node):
        value = node.input[0]
        node = network.producers.get(value)
    if node is None or _width(network, value) == 0:
        return None
    if node.op_type == "Dropout":
        return Dropout(_ratio(network, node), node.input[0])
    dense = _dense(network, node)
    if dense is not None:
        return dense
    if node.op_type == "BatchNormalization" and _width(network, node.input[0]):
        return Elementwise([node], node.input[0], value)
    return _elementwise(network, value)


def _passes(network: NetworkGraph, node: onnx.NodeProto) -> bool:
    """Return whether a node leaves the numbers of a vector as they are, and in their order."""
    if node.op_type in _PASSING:
        return True
    return node.op_type in _RESHAPING and 0 < _width(network, node.input[0]) == _width(
        network, node.output[0]
    )


def _dense(network: NetworkGraph, node: onnx.NodeProto) -> Dense | None:
    if node.op_type in _POOLING:
        return _pooled_convolution(network, node)
    if node.op_type not in ("Gemm", "MatMul", "Conv") or not _width(network, node.input[0]):
        return None
    weight = network.constant(node.input[1])
    if weight is None:
        return None
    bias = network.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    options = attributes(node)
    name = plain_name(node.name or node.output[0])
    if node.op_type == "Gemm":
        if options.get("transA", 0):
            return None
        weight = options.get("alpha", 1.0) * (weight.T if options.get("transB", 0) else weight)
        bias = None if bias is None else options.get("beta", 1.0) * bias
    elif node.op_type == "Conv":
        if weight.shape[2:] != (1, 1) or options.get("group", 1) != 1:
            return None
        weight = weight[:, :, 0, 0].T
    if weight.ndim != 2:
        return None
    return _dense_layer(name, weight, bias, node.input[0])


def _dense_layer(
    name: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    value: str,
    pooled: bool = False,
) -> Dense:
    weight = np.ascontiguousarray(weight, np.float32)
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), weight.shape[1:]).astype(np.float32)
    return Dense(name, weight, bias, value, pooled)


def _pooled_convolution(network: NetworkGraph, pooling: onnx.NodeProto) -> Dense | None:
    """Return a 1 x 1 convolution before average pooling as a dense layer behind the pooling."""
    node = network.producers.get(pooling.input[0])
    shape = network.shapes.get(pooling.input[0], ())
    if node is None or node.op_type != "Conv" or len(shape) != 4:
        return None
    if network.shapes[pooling.output[0]][1] != shape[1]:
        return None
    weight, options = network.constant(node.input[1]), attributes(node)
    plain = options.get("group", 1) == 1 and not any(options.get("pads", []))
    if weight is None or weight.shape[2:] != (1, 1) or not plain:
        return None
    if any(stride != 1 for stride in options.get("strides", [])):
        return None
    bias = network.constant(node.input[2]) if len(node.input) > 2 else None
    name = plain_name(node.name or node.output[0])
    return _dense_layer(name, weight[:, :, 0, 0].T, bias, node.input[0], pooled=True)


def _elementwise(network: NetworkGraph, value: str) -> Elementwise | None:
    """Return the smallest group of nodes that computes a value from a single other one.

    So x * sigmoid(x), of three nodes, is one step.
    """
    nodes: list[onnx.NodeProto] = []
    open_values = {value}
    while len(open_values) > 1 or not nodes:
        latest = max(open_values, key=lambda each: network.places.get(each, -1))
        node = network.producers.get(latest)
        if node is None or node.op_type not in _ELEMENTWISE or _width(network, latest) == 0:
            return None
        nodes.insert(0, node)
        open_values.remove(latest)
        open_values |= set(network.inputs(node))
        if not open_values:
            return None
    return Elementwise(nodes, open_values.pop(), value)


def _ratio(network: NetworkGraph, node: onnx.NodeProto) -> float:
    """Return p of a Dropout node: its second input since operator set 12, or 0.5 without one."""
    given = network.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    ratio = attributes(node).get("ratio", 0.5) if given is None else given
    return float(str(np.float32(ratio)))  # 0.4, not the float32 next to it


def _without_unused_dropout(steps: Sequence[Step]) -> list[Step]:
    """Leave out dropout that zeroes nothing, is doubled, or that no dense layer follows."""
    kept: list[Step] = []
    for place, step in enumerate(steps):
        if isinstance(step, Dropout):
            doubled = bool(kept) and isinstance(kept[-1], Dropout)
            followed = any(isinstance(each, Dense) for each in steps[place:])
            if not 0 < step.p < 1 or doubled or not followed:
                continue
        kept.append(step)
    return kept


def _named(steps: Sequence[Step], name: str) -> int:
    """Return the place of the dense layer that a name means."""
    for place, step in enumerate(steps):
        if isinstance(step, Dense) and name in (step.name, plain_name(step.input)):
            return place
    layers = ", ".join(step.name for step in steps if isinstance(step, Dense))
    raise ExportError(f"{name!r} is no dense layer at the end of the network; it has {layers}.")


def _is_hidden(steps: Sequence[Step], place: int) -> bool:
    """Return whether a dense layer's input is the activation of another dense layer."""
    between: list[Elementwise] = []
    for step in reversed(steps[:place]):
        if isinstance(step, Dense):
            return any(each.is_activation for each in between)
        if isinstance(step, Elementwise):
            between.append(step)
    return False


def _no_dense_layer(network: NetworkGraph, logits: str) -> str:
    node = network.producers.get(logits)
    while node is not None and _passes(network, node):
        node = network.producers.get(node.input[0])
    if node is None:
        return "The network's output is its input; name a file with a classifier."
    if any(each.op_type in _QUANTISED for each in network.graph.node):
        return (
            "The network is quantised, so its last layer multiplies integers; adopt the float32 "
            "file that it was made from."
        )
    return (
        f"The network has no dense layer before its output: its logits come from {node.op_type} "
        f"({plain_name(node.name or node.output[0])}), and dropout needs units that are multiplied "
        "by constant weights; put a dense layer at its end and train it, or train a new network "
        "with python -m training."
    )
