"""ONNX graphs written node by node, as bytes. Knows the format and no computation.

The service loads graphs without an ONNX package. It also writes one, that of
`model.graphs.mc_statistics`. The format is a handful of protocol buffer messages, and the encodings
of two messages merge when they are concatenated: `head.onnx` followed by the bytes of more nodes is
a graph with both. Field numbers are those of onnx.proto
(https://onnx.ai/onnx/repo-docs/IR.html).
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_IR_VERSION = 10
_OPSET_VERSION = 20
"""Version of the operator set, the same as in `training.export.to_onnx`."""

_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}


class Graph:
    """A graph under construction: nodes in the order of computation, values known by name."""

    def __init__(self, prefix: str) -> None:
        """Start an empty graph.

        prefix: begins every name, so that graphs that are concatenated share none.
        """
        self._prefix = prefix
        self._fields: list[bytes] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare a float32 input and return its name.

        shape: a dimension is a number, or a name where it may vary.
        """
        name = self._prefix + name
        self._fields.append(_message(11, _value(name, shape, np.float32)))
        return name

    def constant(self, value: NDArray[np.generic] | Sequence[int]) -> str:
        """Add a constant and return its name: a float32 array, or integers as int64."""
        array = np.asarray(value)
        name = self._new_name()
        fields = [_number(1, size) for size in array.shape]
        fields += [_number(2, _TYPES[array.dtype]), _text(8, name), _message(9, array.tobytes())]
        self._fields.append(_message(5, b"".join(fields)))
        return name

    def node(
        self, operator: str, *inputs: str, name: str = "", **attributes: float | Sequence[int]
    ) -> str:
        """Add a node with one output and return the name of the output, with the prefix."""
        return self._add(operator, inputs, [name], attributes)[0]

    def split_in_two(self, value: str, axis: int, names: Sequence[str] = ("", "")) -> list[str]:
        """Add a node that splits a value in two equal parts along `axis`; return their names."""
        return self._add("Split", [value], names, {"axis": axis, "num_outputs": 2})

    def _add(
        self,
        operator: str,
        inputs: Sequence[str],
        names: Sequence[str],
        attributes: dict[str, float | Sequence[int]],
    ) -> list[str]:
        outputs = [self._prefix + name if name else self._new_name() for name in names]
        fields = [_text(1, name) for name in inputs]
        fields += [_text(2, name) for name in outputs]
        fields += [_text(4, operator)]
        fields += [_message(5, _attribute(*item)) for item in attributes.items()]
        self._fields.append(_message(1, b"".join(fields)))
        return outputs

    def output(
        self, name: str, shape: Sequence[int | str], dtype: type[np.generic] = np.float32
    ) -> None:
        """Declare the value of that name, float32 or int64, an output."""
        self._fields.append(_message(12, _value(self._prefix + name, shape, dtype)))

    def encode_nodes(self) -> bytes:
        """Encode the nodes without a model, to be appended to the bytes of one."""
        return _message(7, b"".join(self._fields))

    def encode_model(self) -> bytes:
        """Encode a complete model."""
        operators = _text(1, "") + _number(2, _OPSET_VERSION)
        named = _message(7, _text(2, self._prefix))
        return _number(1, _IR_VERSION) + _message(8, operators) + named + self.encode_nodes()

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def _value(name: str, shape: Sequence[int | str], dtype: type[np.generic]) -> bytes:
    dimensions = (_number(1, size) if isinstance(size, int) else _text(2, size) for size in shape)
    sizes = b"".join(_message(1, dimension) for dimension in dimensions)
    tensor = _number(1, _TYPES[np.dtype(dtype)]) + _message(2, sizes)
    return _text(1, name) + _message(2, _message(1, tensor))


def _attribute(name: str, value: float | Sequence[int]) -> bytes:
    match value:
        case int():
            content = _number(3, value) + _number(20, 2)
        case float():
            content = _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
        case _:
            content = b"".join(_number(8, each) for each in value) + _number(20, 7)
    return _text(1, name) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)  # two's complement


def _varint(value: int) -> bytes:
    """Encode seven bits a byte, the lowest first; the eighth bit is set if more bytes follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
