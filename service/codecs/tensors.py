"""Tensors of the Open Inference Protocol, and their binary form (`binary_tensor_data`).

Knows no model.
"""

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

InputDatatype = Literal["FP32", "UINT8", "BYTES"]
Datatype = Literal[InputDatatype, "BOOL"]
Array = NDArray[Any]
Parameters = dict[str, Any]
"""The protocol has text, numbers and booleans; MLServer sends objects, too, as `headers`. Who reads
a parameter checks its value, and all others are ignored."""

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
ELEMENT_LENGTH = struct.Struct("<I")
"""The length before each BYTES element of binary data."""


@dataclass(slots=True)
class Tensor:
    """A named array: float32 for FP32, uint8 for UINT8, bool for BOOL, `bytes` for BYTES."""

    name: str
    datatype: Datatype
    values: Array


def to_binary(tensor: Tensor) -> bytes:
    """Serialise the values, little-endian; each BYTES element follows its uint32 length."""
    if tensor.datatype == "BYTES":
        elements: list[bytes] = tensor.values.ravel().tolist()
        return b"".join([ELEMENT_LENGTH.pack(len(each)) + each for each in elements])
    data: bytes = tensor.values.astype(DTYPES[tensor.datatype], copy=False).tobytes()
    return data
