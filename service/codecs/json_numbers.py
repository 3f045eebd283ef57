"""The one long list of numbers in a request's JSON -> an array, without a Python object for each.

Knows no field but a tensor's `data`.
"""

import numpy as np
import simdjson
from numpy.typing import NDArray

_KEY = b'"data"'
_SMALL_BYTES = 2**17
_PARSER = simdjson.Parser()
"""For small texts: it keeps room for the largest it has seen."""


def cut(text: bytes) -> tuple[bytes, bytes] | None:
    """Cut the list out that follows the key `data`, if there is one such key and it has a list.

    Returns:
        the text with null in the list's place, in which nothing else can be the key's value, and
        the list; None: leave the text as it is.
    """
    key = text.find(_KEY)
    if key < 0:
        return None
    start, stop = text.find(b"[", key), text.find(b"]", key) + 1
    if text[key + len(_KEY) : start].strip() != b":" or text.find(_KEY, stop) >= 0:
        return None
    if b"\\" in text:  # an escape could spell the key once more
        return None
    return b"null".join((text[:start], text[stop:])), text[start:stop]


def flat(text: bytes) -> NDArray[np.float64] | None:
    """Read a list of numbers, float64 [n]; None: something else is in it, or a too large one."""
    parser = _PARSER if len(text) <= _SMALL_BYTES else simdjson.Parser()
    try:
        numbers = parser.parse(text)
        return np.frombuffer(numbers.as_buffer(of_type="d"))  # type: ignore[union-attr]
    # Not numbers alone, or not within 64 bits; or another thread is using the parser.
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return None
