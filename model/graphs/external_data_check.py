"""Checks that an encoded ONNX graph embeds all of its weights, before the graph is loaded.

A tensor may name an external file that holds its values. No manifest has the digest of that file,
so such a graph is refused. The check walks protocol buffers
(https://protobuf.dev/programming-guides/encoding/) with the field numbers of onnx.proto, without an
ONNX package.
"""

from collections.abc import Iterator, Mapping

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_WIDTHS = {_FIXED_64: 8, _FIXED_32: 4}
_MAX_DEPTH = 64
"""Deepest nesting of messages; the parsers of protocol buffers stop at 100."""

_MAX_FIELDS = 2_000_000
"""Most fields of a graph; a large network has about ten thousand, and each takes a microsecond."""

_MAX_KEY = 2**32 - 1
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13

# Message -> those of its fields that hold tensors at any depth: field number -> message.
_TENSOR_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}


class OnnxEncodingError(ValueError):
    """The bytes are not an encoded graph, or the graph reads another file."""


def require_self_contained(model: bytes) -> None:
    """Check that an encoded ModelProto embeds the values of all its tensors.

    Raises:
        OnnxEncodingError: the values of a tensor are in another file, or the encoding is damaged.
    """
    pending = [("Model", memoryview(model), 0)]
    field_count = 0
    while pending:
        message, data, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise OnnxEncodingError("its graphs are nested too deep")
        for field, value in _fields(data):
            field_count += 1
            if field_count > _MAX_FIELDS:
                raise OnnxEncodingError(f"it has more than {_MAX_FIELDS:,} fields")
            if message == "Tensor" and _is_external(field, value):
                raise OnnxEncodingError("a tensor's values are in another file")
            inner = _TENSOR_FIELDS[message].get(field)
            if inner is not None and not isinstance(value, int):
                pending.append((inner, value, depth + 1))


def _is_external(field: int, value: "int | memoryview") -> bool:
    return field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)


def _fields(data: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """Yield the number and the value of each field; a value of fixed width as its bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        if key > _MAX_KEY:
            raise OnnxEncodingError("it is no encoded graph")
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in _WIDTHS:
            size = _WIDTHS[kind]
        else:
            raise OnnxEncodingError("it is no encoded graph")
        if size > len(data) - position:
            raise OnnxEncodingError("it is cut short")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Decode a varint, seven bits a byte, the lowest first.

    Returns:
        The number, and the position after it.
    """
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise OnnxEncodingError("it is cut short")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise OnnxEncodingError("it is no encoded graph")
