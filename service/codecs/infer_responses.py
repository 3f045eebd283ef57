"""Inference responses of the Open Inference Protocol: output tensors -> a response body.

Supports values in JSON and in binary, and Triton's extension `classification`. Knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from service.codecs.infer_requests import InferRequest, refuse_duplicates
from service.codecs.tensors import Array, Parameters, Tensor, to_binary
from service.codecs.validation_sentence import quote
from service.errors import InvalidTensorError

_CHUNK_NUMBERS = 2**14


def write_response(
    header: Mapping[str, Any], tensors: Sequence[Tensor], request: InferRequest
) -> tuple[bytes, int | None]:
    """Serialise a response with the requested outputs, each as JSON or as binary data.

    header: the fields of the response besides `outputs`.

    Returns:
        the body, and the length of its JSON where binary tensors follow it, else None.

    Raises:
        InvalidTensorError: a requested output does not exist or is named twice.
    """
    described, blobs = [], []
    for tensor, binary in _requested_outputs(tensors, request):
        values = tensor.values
        each: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": values.shape,
        }
        if binary:
            blob = to_binary(tensor)
            each["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif tensor.datatype == "BYTES":
            each["data"] = [element.decode() for element in values.ravel().tolist()]
        else:
            each["data"] = _serialize_in_chunks(values.ravel())
        described.append(each)
    text = orjson.dumps({**header, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *blobs)), len(text)) if blobs else (text, None)


def _serialize_in_chunks(numbers: Array) -> Array | orjson.Fragment:
    """Serialise many numbers in chunks; a single orjson call would hold the GIL throughout."""
    if numbers.size <= _CHUNK_NUMBERS:
        return numbers
    pieces = [
        orjson.dumps(numbers[at : at + _CHUNK_NUMBERS], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        for at in range(0, numbers.size, _CHUNK_NUMBERS)
    ]
    return orjson.Fragment(b"".join((b"[", b",".join(pieces), b"]")))


def _requested_outputs(
    tensors: Sequence[Tensor], request: InferRequest
) -> list[tuple[Tensor, bool]]:
    """Return the requested outputs in the requested order, and whether each is binary."""
    if not (request.parameters or request.outputs):
        return [(tensor, False) for tensor in tensors]
    by_default = _boolean_parameter(
        "The request", request.parameters, "binary_data_output", default=False
    )
    if not request.outputs:
        return [(tensor, by_default) for tensor in tensors]
    refuse_duplicates("output", [output.name for output in request.outputs])
    offered = {tensor.name: tensor for tensor in tensors}
    chosen = []
    for output in request.outputs:
        name = output.name
        if name not in offered:
            raise InvalidTensorError(f"There is no output {name!r}; there is {', '.join(offered)}.")
        is_binary = _boolean_parameter(
            f"Output {name!r}", output.parameters, "binary_data", default=by_default
        )
        chosen.append((offered[name], is_binary))
    return chosen


def top_classes(tensor: Tensor, count: int, class_names: Sequence[str]) -> Tensor:
    """Return the `count` highest scores of FP32 [N, K], as BYTES [N, min(count, K)].

    Each element is `score:index:class name`, the highest score first (Triton's `classification`).
    """
    order = np.argsort(-tensor.values, axis=1, kind="stable")[:, :count]
    rows = [
        [f"{row[index]:f}:{index}:{class_names[index]}".encode() for index in indices]
        for row, indices in zip(tensor.values, order.tolist(), strict=True)
    ]
    return Tensor(tensor.name, "BYTES", np.array(rows, object))


def _boolean_parameter(whose: str, parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidTensorError(f"{whose}: {name!r} is true or false, but got {quote(value)}.")
    return value
