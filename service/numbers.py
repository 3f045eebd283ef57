"""A request's JSON -> Python, its one long list of numbers straight into an array.

Knows no field but a tensor's `data`.
"""

from typing import Any

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from service.errors import InvalidJsonError

_KEY = b'"data"'
_SMALL_BYTES = 2**17
_PARSER = simdjson.Parser()
"""For small texts: it keeps room for the largest it has seen."""


def read(text: bytes) -> Any:
    """Parse the JSON of an inference request.

    Returns:
        what `orjson.loads` does, but the `data` of a single FP32 input that is a flat list of
        numbers is float64 [n].

    Raises:
        InvalidJsonError: it is no JSON.
    """
    try:
        key = text.find(_KEY)
        content = None if key < 0 else _with_array(text, key)
        return orjson.loads(text) if content is None else content
    except orjson.JSONDecodeError:
        pass
    try:  # once more where only a part was no JSON, or to say of the whole where it is none
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(
            f"The body's JSON cannot be read ({error}); NaN and Infinity are not JSON, nesting is "
            "limited, and binary tensors need the header Inference-Header-Content-Length."
        ) from None


def _with_array(text: bytes, key: int) -> dict[str, Any] | None:
    """Parse the list after the key at `key` apart; None: there is no such list, or more keys."""
    start, stop = text.find(b"[", key), text.find(b"]", key) + 1
    if text[key + len(_KEY) : start].strip() != b":" or text.find(_KEY, stop) >= 0:
        return None
    if b"\\" in text:  # an escape could spell the key once more
        return None
    content = orjson.loads(b"null".join((text[:start], text[stop:])))
    match content:  # the only `data` of the text is the one that was cut out
        case {"inputs": [{"data": None, "datatype": "FP32"} as tensor]}:
            numbers = _flat(text[start:stop])
            tensor["data"] = numbers
            return None if numbers is None else content
    return None


def _flat(text: bytes) -> NDArray[np.float64] | None:
    parser = _PARSER if len(text) <= _SMALL_BYTES else simdjson.Parser()
    try:
        numbers = parser.parse(text)
        return np.frombuffer(numbers.as_buffer(of_type="d"))  # type: ignore[union-attr]
    # Not numbers alone, or not within 64 bits; or another thread is using the parser.
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return None
