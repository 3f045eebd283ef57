"""The Open Inference Protocol's tensors: request bodies -> arrays, arrays -> response bodies.

JSON and binary (Triton's `binary_tensor_data`), and its `classification`. Knows no model.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.codecs import json_numbers as numbers
from service.errors import (
    BodyTooLargeError,
    InvalidJsonError,
    InvalidRequestError,
    InvalidTensorError,
    ServiceError,
)

Datatype = Literal["FP32", "UINT8", "BYTES"]
Array = NDArray[Any]
Parameters = dict[str, str | int | float | bool]
Dimension = Annotated[int, Field(ge=0, lt=2**31)]

_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_LENGTH = struct.Struct("<I")
_MAX_DIMENSIONS = 16
_MAX_TENSORS = 16
_MAX_PARAMETERS = 64
MAX_JSON_BYTES = 2**16
"""Of the JSON beside binary tensors, or beside the one long list of numbers."""
_PIECE_NUMBERS = 2**14
_SHORT_BYTES = 1_024
"""Of a text that is remembered."""
_NOTHING = memoryview(b"")


def _few(given: Any) -> Any:
    """Bound the work of validation, which looks at every entry; null is as good as left out."""
    if isinstance(given, dict) and len(given) > _MAX_PARAMETERS:
        raise ValueError(f"at most {_MAX_PARAMETERS} parameters are taken")
    return {} if given is None else given


class _Header(BaseModel):
    """Unknown fields are passed over, as the protocol has it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    parameters: Annotated[Parameters, BeforeValidator(_few)] = Field(default_factory=dict)


class Input(_Header):
    """One input tensor as the request describes it; `data` is None where it comes in binary."""

    name: str
    shape: list[Dimension] = Field(max_length=_MAX_DIMENSIONS)
    datatype: Datatype
    data: Any = None


class Output(_Header):
    """One output that the request asks for."""

    name: str


class InferRequest(_Header):
    """The JSON part of a request."""

    id: str | int | None = None
    inputs: list[Input] = Field(min_length=1, max_length=_MAX_TENSORS)
    outputs: Annotated[list[Output], Field(max_length=_MAX_TENSORS)] | None = None

    @cached_property
    def is_of_numbers(self) -> bool:
        """Tell whether it has one FP32 input, whose `data` is there and null.

        So it is where the list was cut out, the only one of that name in the text.
        """
        given, *others = self.inputs
        has_data = "data" in given.model_fields_set and given.data is None
        return not others and given.datatype == "FP32" and has_data

    @cached_property
    def in_binary(self) -> "_InBinary | None":
        """The one input, if nothing is left to be checked but whether its bytes are there."""
        given, *others = self.inputs
        dtype = _DTYPES.get(given.datatype)
        if others or dtype is None or given.data is not None:
            return None
        size = dtype.itemsize * math.prod(given.shape)
        said = given.parameters.get("binary_data_size")
        if type(said) is not int or said != size or not size:
            return None
        return _InBinary(given.name, given.datatype, dtype, tuple(given.shape), size)


@dataclass(frozen=True, slots=True)
class _InBinary:
    """Numbers in binary: their number of bytes is that of their shape."""

    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    def read(self, data: memoryview) -> "Tensor":
        """Take the bytes as they are."""
        return Tensor(self.name, self.datatype, np.ndarray(self.shape, self.dtype, data))


@dataclass(slots=True)  # frozen ones take long to make
class Payload:
    """What the tensors of a request are made of, where it is not in its JSON as it was read."""

    numbers: NDArray[np.float64] | None
    """[n], the one input's."""
    binary: memoryview


@dataclass(slots=True)
class Tensor:
    """A named array: FP32 and UINT8 as such, BYTES as an object array of bytes."""

    name: str
    datatype: Datatype
    values: Array


def parse(body: bytes, json_length: int | None) -> tuple[InferRequest, Payload]:
    """Split a body into its JSON, validated, and what its tensors are made of.

    json_length: bytes of the JSON, as Inference-Header-Content-Length says; None: all of it.

    Raises:
        InvalidJsonError, InvalidRequestError: naming what is wrong, and where.
    """
    end = len(body) if json_length is None else json_length
    if end > len(body):
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {end}, more than the body's {len(body)} bytes; "
            "send the length of the JSON alone."
        )
    if end < len(body):
        # A copy, so that the numbers lie at addresses that suit their size.
        return _described(body[:end]), Payload(None, memoryview(body[end:]))
    return parse_numbers(body) or (_described(body), Payload(None, _NOTHING))


def parse_numbers(text: bytes) -> tuple[InferRequest, Payload] | None:
    """Parse a request of one FP32 tensor, its data apart; None: it is not one, or it is wrong."""
    parts = numbers.cut(text)
    if parts is None or len(parts[0]) > MAX_JSON_BYTES:
        return None
    try:
        request = _described(parts[0])
    except ServiceError:  # of the whole text the sentence will be right
        return None
    if not request.is_of_numbers:
        return None
    values = numbers.flat(parts[1])
    return None if values is None else (request, Payload(values, _NOTHING))


def _described(text: bytes) -> InferRequest:
    return _remembered(text) if len(text) <= _SHORT_BYTES else _read(text)


def _read(text: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(
            f"The body's JSON cannot be read ({error}); NaN and Infinity are not JSON, nesting is "
            "limited, and binary tensors need the header Inference-Header-Content-Length."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise InvalidRequestError(
            f"The request is not one of the Open Inference Protocol: {where}: {message}."
        ) from None


_remembered = lru_cache(maxsize=256)(_read)
"""But for the values, the requests of a client are the same text again and again."""


def read_inputs(request: InferRequest, payload: Payload) -> list[Tensor]:
    """Read every input's values, from the JSON or, in order, from the binary part.

    Raises:
        InvalidTensorError: a size, shape, datatype or value that does not fit.
    """
    offset, binary = 0, payload.binary
    whole = request.in_binary
    if whole is not None and len(binary) == whole.size:
        return [whole.read(binary)]
    if len(request.inputs) > 1:
        _refuse_twice("input", [each.name for each in request.inputs])
    tensors = []
    for given in request.inputs:
        datatype = given.datatype
        size = given.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(given, datatype, payload.numbers)
        else:
            if given.data is not None or payload.numbers is not None:
                raise _bad(given, "has both 'data' and 'binary_data_size'; send one of them")
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise _bad(given, "has a 'binary_data_size' that is not a number of bytes")
            if offset + size > len(binary):
                raise _bad(given, f"lacks {offset + size - len(binary)} of its {size} binary bytes")
            values = _from_binary(given, datatype, binary[offset : offset + size])
            offset += size
        try:
            tensors.append(Tensor(given.name, datatype, values.reshape(given.shape)))
        except ValueError:  # no values, and more of them than NumPy can count but for a 0
            raise _bad(given, f"has no values in its shape {given.shape}") from None
    if offset != len(binary):
        raise InvalidTensorError(
            f"{len(binary) - offset} bytes follow the last binary tensor; let each input's "
            "'binary_data_size' and Inference-Header-Content-Length add up to the body."
        )
    return tensors


def as_binary(request: InferRequest, images: Array | Sequence[bytes]) -> tuple[bytes, int]:
    """Write a request anew that asks the same of the same images, these as one binary tensor.

    images: float32 or uint8 [N, C, H, W], or N encoded files.

    Returns:
        the body, and the length of its JSON.

    Raises:
        BodyTooLargeError: there is much in it beside the images.
    """
    datatype, shape, data = _in_one(images)
    (given,) = request.inputs
    size = {"binary_data_size": len(data)}
    described = {
        "name": given.name,
        "datatype": datatype,
        "shape": shape,
        "parameters": given.parameters | size,
    }
    rest = request.model_dump(exclude={"inputs"}, exclude_none=True)
    text = orjson.dumps({**rest, "inputs": [described]})
    check_json_length(len(text))
    return text + data, len(text)


def _in_one(images: Array | Sequence[bytes]) -> tuple[Datatype, list[int], bytes]:
    if not isinstance(images, np.ndarray):
        elements = np.empty(len(images), object)
        elements[:] = images
        return "BYTES", [len(images)], _to_binary(Tensor("", "BYTES", elements))
    datatype: Datatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    return datatype, list(images.shape), _to_binary(Tensor("", datatype, images))


def check_json_length(length: int) -> None:
    """Bound the JSON beside binary tensors; raises BodyTooLargeError."""
    if length > MAX_JSON_BYTES:
        raise BodyTooLargeError(
            f"The JSON beside the images has {length:,} bytes, more than the {MAX_JSON_BYTES:,} "
            "allowed; send less in it."
        )


def write(
    header: Mapping[str, Any], tensors: Sequence[Tensor], request: InferRequest
) -> tuple[bytes, int | None]:
    """Serialise a response: those outputs that the request asks for, each as it asks for it.

    Returns:
        the body, and the length of its JSON where binary tensors follow it, else None.

    Raises:
        InvalidTensorError: an output that is not there, twice, or not to be classified.
    """
    described, blobs = [], []
    for tensor, binary in _chosen(tensors, request):
        values = tensor.values
        each: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": values.shape,
        }
        if binary:
            blob = _to_binary(tensor)
            each["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif tensor.datatype == "BYTES":
            each["data"] = [element.decode() for element in values.ravel().tolist()]
        else:
            each["data"] = _in_pieces(values.ravel())
        described.append(each)
    text = orjson.dumps({**header, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *blobs)), len(text)) if blobs else (text, None)


def _in_pieces(numbers: Array) -> Array | orjson.Fragment:
    """Serialise many numbers in several steps: one would keep Python's lock all the time."""
    if numbers.size <= _PIECE_NUMBERS:
        return numbers
    pieces = [
        orjson.dumps(numbers[at : at + _PIECE_NUMBERS], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        for at in range(0, numbers.size, _PIECE_NUMBERS)
    ]
    return orjson.Fragment(b"".join((b"[", b",".join(pieces), b"]")))


def _chosen(tensors: Sequence[Tensor], request: InferRequest) -> list[tuple[Tensor, bool]]:
    """Return the outputs that are asked for, in their order, and whether each is to be binary."""
    if not (request.parameters or request.outputs):
        return [(tensor, False) for tensor in tensors]
    by_default = _wish("The request", request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return [(tensor, by_default) for tensor in tensors]
    _refuse_twice("output", [output.name for output in request.outputs])
    offered = {tensor.name: tensor for tensor in tensors}
    chosen = []
    for output in request.outputs:
        name = output.name
        if name not in offered:
            raise InvalidTensorError(f"There is no output {name!r}; there is {', '.join(offered)}.")
        wish = _wish(f"Output {name!r}", output.parameters, "binary_data", default=by_default)
        chosen.append((offered[name], wish))
    return chosen


def classified(tensor: Tensor, count: int, class_names: Sequence[str]) -> Tensor:
    """Turn scores FP32 [N, K] into the `count` highest, BYTES [N, min(count, K)].

    Each element is `score:index:class name`, the highest first (Triton's extension).
    """
    order = np.argsort(-tensor.values, axis=1, kind="stable")[:, :count]
    rows = [
        [f"{row[index]:f}:{index}:{class_names[index]}".encode() for index in indices]
        for row, indices in zip(tensor.values, order.tolist(), strict=True)
    ]
    return Tensor(tensor.name, "BYTES", np.array(rows, object))


def _from_json(given: Input, datatype: Datatype, numbers: Array | None) -> Array:
    if numbers is not None:
        _require_count(given, len(numbers))
        return numbers
    if not isinstance(given.data, list):
        raise _bad(given, "has no list 'data'; send its values there, or in binary")
    flat = _flat(given)
    _require_count(given, len(flat))
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if kinds - {str}:
            raise _bad(given, "has an element that is no string; send each image in base64")
        values = np.empty(len(flat), object)
        values[:] = flat
        return values
    if kinds - ({int, float} if datatype == "FP32" else {int}):
        raise _bad(given, f"has an element that is no {datatype} number")
    try:
        return np.array(flat, np.float64 if datatype == "FP32" else np.uint8)
    except OverflowError:
        raise _bad(given, f"has a number out of {datatype}'s range") from None


def _flat(given: Input) -> list[Any]:
    """Flatten `data`, which is flat, or nested as the shape is; dimensions of 1 do not count."""
    flat: list[Any] = given.data
    if len(flat) > max(1, math.prod(given.shape)):
        return flat  # too many, nested or not
    lengths = [len(flat)]
    while flat and isinstance(flat[0], list) and len(lengths) < _MAX_DIMENSIONS:
        lengths.append(len(flat[0]))
        if any(not isinstance(row, list) or len(row) != lengths[-1] for row in flat):
            raise _bad(given, "has rows of different lengths")
        flat = list(chain.from_iterable(flat))
    *outer, inner = [length for length in lengths if length != 1] or [1]
    shape = [size for size in given.shape if size != 1]
    # The innermost lists may hold all that is left, row by row.
    if outer and (outer != shape[: len(outer)] or inner != math.prod(shape[len(outer) :])):
        raise _bad(given, f"is not nested as its shape {given.shape} is")
    return flat


def _from_binary(given: Input, datatype: Datatype, data: memoryview) -> Array:
    if datatype == "BYTES":
        elements = _elements(given, data)
        values = np.empty(len(elements), object)
        values[:] = elements
    else:
        dtype = _DTYPES[datatype]
        if len(data) % dtype.itemsize:
            raise _bad(given, f"has {len(data)} bytes, not a whole number of {datatype} values")
        values = np.frombuffer(data, dtype)
    _require_count(given, len(values))
    return values


def _elements(given: Input, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    expected = math.prod(given.shape)
    while start < len(data):
        if len(elements) == expected:
            raise _bad(given, f"has more values than its shape {given.shape} takes")
        if start + _LENGTH.size > len(data):
            raise _bad(given, "ends within an element's length")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            raise _bad(given, "ends within an element")
        elements.append(bytes(data[start : start + length]))
        start += length
    return elements


def _require_count(given: Input, count: int) -> None:
    expected = math.prod(given.shape)
    if count != expected:
        raise _bad(given, f"has {count} values, but its shape {given.shape} takes {expected}")


def _to_binary(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        elements: list[bytes] = tensor.values.ravel().tolist()
        return b"".join([_LENGTH.pack(len(each)) + each for each in elements])
    data: bytes = tensor.values.astype(_DTYPES[tensor.datatype], copy=False).tobytes()
    return data


def _wish(whose: str, parameters: Parameters, name: str, *, default: bool) -> bool:
    wish = parameters.get(name, default)
    if not isinstance(wish, bool):
        raise InvalidTensorError(f"{whose}: {name!r} is true or false, but got {wish!r}.")
    return wish


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidTensorError(f"{what.capitalize()} {name!r} is given twice; give it once.")
        seen.add(name)


def _bad(given: Input, reason: str) -> InvalidTensorError:
    return InvalidTensorError(f"Input {given.name!r} {reason}.")
