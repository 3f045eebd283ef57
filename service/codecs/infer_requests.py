"""Inference requests of the Open Inference Protocol: a request body -> input tensors, and back.

Supports values in JSON and in binary (Triton's extension `binary_tensor_data`). Knows no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.codecs import json_numbers
from service.codecs.tensors import (
    DTYPES,
    ELEMENT_LENGTH,
    Array,
    InputDatatype,
    Parameters,
    Tensor,
    to_binary,
)
from service.codecs.validation_sentence import first_problem
from service.errors import (
    BodyTooLargeError,
    InvalidJsonError,
    InvalidRequestError,
    InvalidTensorError,
    ServiceError,
)

Dimension = Annotated[int, Field(ge=0, lt=2**31)]

_MAX_DIMENSIONS = 16
_MAX_TENSORS = 16
_MAX_PARAMETERS = 64
MAX_JSON_BYTES = 2**16
"""Limit of the JSON without the binary tensors or the extracted list of numbers."""
_MAX_CACHED_BYTES = 1_024
"""Longer JSON texts are parsed without the cache."""
_EMPTY = memoryview(b"")
_CONTENT_TYPE, _BASE64 = "content_type", "base64"
"""MLServer's parameter and value for encoded images that are base64 also in binary data."""


def _limit_parameters(parameters: Any) -> Any:
    """Limit the number of entries before pydantic validates each; null counts as left out."""
    if not isinstance(parameters, dict):
        return {} if parameters is None else parameters
    if len(parameters) > _MAX_PARAMETERS:
        raise ValueError(f"at most {_MAX_PARAMETERS} parameters are taken")
    return {name: value for name, value in parameters.items() if value is not None}


class _Parametrized(BaseModel):
    """A part of the request that has parameters. The protocol ignores unknown fields."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    parameters: Annotated[Parameters, BeforeValidator(_limit_parameters)] = Field(
        default_factory=dict
    )


class Input(_Parametrized):
    """The description of an input tensor; `data` is None where the values are binary."""

    name: str
    shape: list[Dimension] = Field(max_length=_MAX_DIMENSIONS)
    datatype: InputDatatype
    data: Any = None


class Output(_Parametrized):
    """The description of an output tensor that the client requests."""

    name: str


class InferRequest(_Parametrized):
    """The JSON part of an inference request."""

    id: str | int | None = None
    inputs: list[Input] = Field(min_length=1, max_length=_MAX_TENSORS)
    outputs: Annotated[list[Output], Field(max_length=_MAX_TENSORS)] | None = None

    @cached_property
    def has_extracted_data(self) -> bool:
        """True if there is one input, FP32, whose `data` is an explicit null.

        After `cut_data_list`, that null marks the place of the list that was cut out.
        """
        tensor, *more = self.inputs
        has_null_data = "data" in tensor.model_fields_set and tensor.data is None
        return not more and tensor.datatype == "FP32" and has_null_data

    @cached_property
    def has_base64_in_binary(self) -> bool:
        """True if an input holds base64 in its binary data, which takes long to decode."""
        return any(each.parameters.get(_CONTENT_TYPE) == _BASE64 for each in self.inputs)

    @cached_property
    def single_binary_input(self) -> "_BinaryInput | None":
        """The only input, if it is binary, numeric, and its declared size matches its shape.

        The property is computed once for each cached request, so that `read_inputs` needs no more
        than to compare the size of the body.
        """
        tensor, *more = self.inputs
        dtype = DTYPES.get(tensor.datatype)
        if more or dtype is None or tensor.data is not None:
            return None
        size = dtype.itemsize * math.prod(tensor.shape)
        declared_size = tensor.parameters.get("binary_data_size")
        if type(declared_size) is not int or declared_size != size or not size:
            return None
        return _BinaryInput(tensor.name, tensor.datatype, dtype, tuple(tensor.shape), size)


@dataclass(frozen=True, slots=True)
class _BinaryInput:
    """A numeric input whose binary data has exactly the `size` bytes of its shape."""

    name: str
    datatype: InputDatatype
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    def read(self, data: memoryview) -> "Tensor":
        """Build a tensor that shares the memory of `data`."""
        return Tensor(self.name, self.datatype, np.ndarray(self.shape, self.dtype, data))


@dataclass(slots=True)  # one per request; a frozen dataclass is slower to create
class Payload:
    """The values of a request's tensors that are outside of its parsed JSON."""

    numbers: NDArray[np.float64] | None
    """[n], the `data` of the only input where it was parsed apart; else None."""
    binary: memoryview
    """The bytes after the JSON."""


def parse_request(body: bytes, json_length: int | None) -> tuple[InferRequest, Payload]:
    """Split a request body into its validated JSON and the values of its tensors.

    json_length: bytes of the JSON from Inference-Header-Content-Length; None if the whole body
    is JSON.

    Raises:
        InvalidJsonError: the JSON cannot be parsed.
        InvalidRequestError: the JSON is not an inference request; the message names the field.
    """
    end = len(body) if json_length is None else json_length
    if end > len(body):
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {end}, more than the body's {len(body)} bytes; "
            "send the length of the JSON alone."
        )
    if end < len(body):
        # The slice is a copy, so that the binary data is aligned in memory.
        return _parse_json_part(body[:end]), Payload(None, memoryview(body[end:]))
    return parse_numeric_request(body) or (_parse_json_part(body), Payload(None, _EMPTY))


def parse_numeric_request(text: bytes) -> tuple[InferRequest, Payload] | None:
    """Parse a request of one FP32 tensor in JSON, whose list of numbers is parsed apart.

    Returns None for any other request, also for an invalid one.
    """
    parts = json_numbers.cut_data_list(text)
    if parts is None or len(parts[0]) > MAX_JSON_BYTES:
        return None
    try:
        request = _parse_json_part(parts[0])
    except ServiceError:  # of the whole text the sentence will be right
        return None
    if not request.has_extracted_data:
        return None
    values = json_numbers.parse_number_list(parts[1])
    return None if values is None else (request, Payload(values, _EMPTY))


def _parse_json_part(text: bytes) -> InferRequest:
    is_short = len(text) <= _MAX_CACHED_BYTES
    return _parse_description_cached(text) if is_short else _parse_description(text)


def _parse_description(text: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(
            f"The body's JSON cannot be read ({error}); NaN and Infinity are not JSON, nesting is "
            "limited, and binary tensors need the header Inference-Header-Content-Length."
        ) from None
    except ValidationError as error:
        raise InvalidRequestError(
            f"The request is not one of the Open Inference Protocol: {first_problem(error)}."
        ) from None


_parse_description_cached = lru_cache(maxsize=256)(_parse_description)
"""Without the values, the requests of a client have mostly the same JSON text."""


def read_inputs(request: InferRequest, payload: Payload) -> list[Tensor]:
    """Build all input tensors, from the JSON or from the binary data, which is in their order.

    Raises:
        InvalidTensorError: a size, shape, datatype or value does not match.
    """
    offset, binary = 0, payload.binary
    single = request.single_binary_input
    if single is not None and len(binary) == single.size:
        return [single.read(binary)]
    if len(request.inputs) > 1:
        refuse_duplicates("input", [each.name for each in request.inputs])
    tensors = []
    for declared in request.inputs:
        datatype = declared.datatype
        size = declared.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(declared, datatype, payload.numbers)
        else:
            if declared.data is not None or payload.numbers is not None:
                raise _input_error(
                    declared, "has both 'data' and 'binary_data_size'; send one of them"
                )
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise _input_error(
                    declared, "has a 'binary_data_size' that is not a number of bytes"
                )
            if offset + size > len(binary):
                raise _input_error(
                    declared, f"lacks {offset + size - len(binary)} of its {size} binary bytes"
                )
            values = _from_binary(declared, datatype, binary[offset : offset + size])
            offset += size
        try:
            tensors.append(Tensor(declared.name, datatype, values.reshape(declared.shape)))
        except ValueError:  # no values, and more of them than NumPy can count but for a 0
            raise _input_error(declared, f"has no values in its shape {declared.shape}") from None
    if offset != len(binary):
        raise InvalidTensorError(
            f"{len(binary) - offset} bytes follow the last binary tensor; let each input's "
            "'binary_data_size' and Inference-Header-Content-Length add up to the body."
        )
    return tensors


def write_binary_request(
    request: InferRequest, images: Array | Sequence[bytes]
) -> tuple[bytes, int]:
    """Serialise an equivalent request whose images are one binary tensor.

    images: float32 or uint8 [N, C, H, W], or N encoded files.

    Returns:
        the body, and the length of its JSON.

    Raises:
        BodyTooLargeError: the JSON without the images exceeds MAX_JSON_BYTES.
    """
    datatype, shape, data = _pack_images(images)
    (declared,) = request.inputs
    size = {"binary_data_size": len(data)}
    described = {
        "name": declared.name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {**declared.parameters, **size, _CONTENT_TYPE: "bytes"},
    }
    rest = request.model_dump(exclude={"inputs"}, exclude_none=True)
    text = orjson.dumps({**rest, "inputs": [described]})
    check_json_length(len(text))
    return text + data, len(text)


def _pack_images(images: Array | Sequence[bytes]) -> tuple[InputDatatype, list[int], bytes]:
    if not isinstance(images, np.ndarray):
        elements = np.empty(len(images), object)
        elements[:] = images
        return "BYTES", [len(images)], to_binary(Tensor("", "BYTES", elements))
    datatype: InputDatatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    return datatype, list(images.shape), to_binary(Tensor("", datatype, images))


def check_json_length(length: int) -> None:
    """Raise BodyTooLargeError if the JSON without the tensors exceeds MAX_JSON_BYTES."""
    if length > MAX_JSON_BYTES:
        raise BodyTooLargeError(
            f"The JSON beside the images has {length:,} bytes, more than the {MAX_JSON_BYTES:,} "
            "allowed; send less in it."
        )


def _from_json(declared: Input, datatype: InputDatatype, numbers: Array | None) -> Array:
    if numbers is not None:
        _require_count(declared, len(numbers))
        return numbers
    if not isinstance(declared.data, list):
        raise _input_error(declared, "has no list 'data'; send its values there, or in binary")
    flat = _flatten(declared)
    _require_count(declared, len(flat))
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if kinds - {str}:
            raise _input_error(
                declared, "has an element that is no string; send each image in base64"
            )
        values = np.empty(len(flat), object)
        values[:] = flat
        return values
    if kinds - ({int, float} if datatype == "FP32" else {int}):
        raise _input_error(declared, f"has an element that is no {datatype} number")
    try:
        return np.array(flat, np.float64 if datatype == "FP32" else np.uint8)
    except OverflowError:
        raise _input_error(declared, f"has a number out of {datatype}'s range") from None


def _flatten(declared: Input) -> list[Any]:
    """Flatten `data`, which is flat or nested like the shape; dimensions of 1 may be left out."""
    flat: list[Any] = declared.data
    if len(flat) > max(1, math.prod(declared.shape)):
        return flat  # too many values already; `_require_count` refuses them
    lengths = [len(flat)]
    while flat and isinstance(flat[0], list) and len(lengths) < _MAX_DIMENSIONS:
        lengths.append(len(flat[0]))
        if any(not isinstance(row, list) or len(row) != lengths[-1] for row in flat):
            raise _input_error(declared, "has rows of different lengths")
        flat = list(chain.from_iterable(flat))
    *outer, inner = [length for length in lengths if length != 1] or [1]
    shape = [size for size in declared.shape if size != 1]
    # The innermost lists may be flat: a row may hold all remaining dimensions.
    if outer and (outer != shape[: len(outer)] or inner != math.prod(shape[len(outer) :])):
        raise _input_error(declared, f"is not nested as its shape {declared.shape} is")
    return flat


def _from_binary(declared: Input, datatype: InputDatatype, data: memoryview) -> Array:
    if datatype == "BYTES":
        elements: list[Any] = _split_elements(declared, data)
        if declared.parameters.get(_CONTENT_TYPE) == _BASE64:
            elements = [each.decode("latin-1") for each in elements]  # as they are in JSON
        values = np.empty(len(elements), object)
        values[:] = elements
    else:
        dtype = DTYPES[datatype]
        if len(data) % dtype.itemsize:
            raise _input_error(
                declared, f"has {len(data)} bytes, not a whole number of {datatype} values"
            )
        values = np.frombuffer(data, dtype)
    _require_count(declared, len(values))
    return values


def _split_elements(declared: Input, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    expected = math.prod(declared.shape)
    while start < len(data):
        if len(elements) == expected:
            raise _input_error(declared, f"has more values than its shape {declared.shape} takes")
        if start + ELEMENT_LENGTH.size > len(data):
            raise _input_error(declared, "ends within an element's length")
        (length,) = ELEMENT_LENGTH.unpack_from(data, start)
        start += ELEMENT_LENGTH.size
        if start + length > len(data):
            raise _input_error(declared, "ends within an element")
        elements.append(bytes(data[start : start + length]))
        start += length
    return elements


def _require_count(declared: Input, count: int) -> None:
    expected = math.prod(declared.shape)
    if count != expected:
        raise _input_error(
            declared, f"has {count} values, but its shape {declared.shape} takes {expected}"
        )


def refuse_duplicates(what: str, names: Sequence[str]) -> None:
    """Raise InvalidTensorError if a name occurs twice; `what` is "input" or "output"."""
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidTensorError(f"{what.capitalize()} {name!r} is given twice; give it once.")
        seen.add(name)


def _input_error(declared: Input, reason: str) -> InvalidTensorError:
    return InvalidTensorError(f"Input {declared.name!r} {reason}.")
