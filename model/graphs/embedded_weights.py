"""What an encoded ONNX graph would read beside itself: looked for before it is loaded.

Walks protocol buffers (https://protobuf.dev/programming-guides/encoding/) with the field numbers of
onnx.proto, without an ONNX package. A tensor may name a file that holds its values; its digest
stands in no manifest, so such a graph is refused.
"""

from collections.abc import Iterator, Mapping

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_WIDTHS = {_FIXED_64: 8, _FIXED_32: 4}
_MOST_LEVELS = 64
"""Protocol buffers' own parsers stop at 100."""

_MOST_FIELDS = 2_000_000
"""Of a graph; a large network has some ten thousand, and each takes a microsecond here."""

_MOST_KEY = 2**32 - 1
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13

# Message -> the fields that hold, at whatever depth, tensors: field -> message.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
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


class WireError(ValueError):
    """The bytes are no encoded graph, or one that reads more than itself."""


def require_self_contained(model: bytes) -> None:
    """Check that an encoded ModelProto keeps all its values inside.

    Raises:
        WireError: a tensor's values are elsewhere, or the encoding is damaged.
    """
    waiting = [("Model", memoryview(model), 0)]
    seen = 0
    while waiting:
        message, data, level = waiting.pop()
        if level > _MOST_LEVELS:
            raise WireError("its graphs are nested too deep")
        for field, value in _fields(data):
            seen += 1
            if seen > _MOST_FIELDS:
                raise WireError(f"it has more than {_MOST_FIELDS:,} fields")
            if message == "Tensor" and _is_elsewhere(field, value):
                raise WireError("a tensor's values are in another file")
            inner = _MESSAGES[message].get(field)
            if inner is not None and not isinstance(value, int):
                waiting.append((inner, value, level + 1))


def _is_elsewhere(field: int, value: "int | memoryview") -> bool:
    return field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)


def _fields(data: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """Yield each field's number and value; a number of fixed width as its bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key > _MOST_KEY:
            raise WireError("it is no encoded graph")
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(data, place)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, place = _varint(data, place)
        elif kind in _WIDTHS:
            size = _WIDTHS[kind]
        else:
            raise WireError("it is no encoded graph")
        if size > len(data) - place:
            raise WireError("it is cut short")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Read seven bits a byte, the lowest first; return the number and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise WireError("it is cut short")
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise WireError("it is no encoded graph")
