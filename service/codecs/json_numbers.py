"""Parses the long list of numbers in a request's JSON to an array, without a Python object each.

Knows no field but a tensor's `data`.
"""

import numpy as np
import simdjson
from numpy.typing import NDArray

_DATA_KEY = b'"data"'
_MAX_SHARED_PARSER_BYTES = 2**17
_SHARED_PARSER = simdjson.Parser()
"""Parses small texts only, since a parser keeps a buffer as large as its largest text."""


def cut_data_list(text: bytes) -> tuple[bytes, bytes] | None:
    """Cut out the list after the key `data`, if the text has exactly one such key with a list.

    Returns:
        the text with null in place of the list, and the list; None where the text has no such list.
        The null is certain to be the value of `data` once the text has been parsed.
    """
    key = text.find(_DATA_KEY)
    if key < 0:
        return None
    start, stop = text.find(b"[", key), text.find(b"]", key) + 1
    if text[key + len(_DATA_KEY) : start].strip() != b":" or text.find(_DATA_KEY, stop) >= 0:
        return None
    if b"\\" in text:  # an escaped spelling of the key could be a second one
        return None
    return b"null".join((text[:start], text[stop:])), text[start:stop]


def parse_number_list(text: bytes) -> NDArray[np.float64] | None:
    """Parse a flat JSON list of numbers to float64 [n].

    Returns None if an element is not a number or does not fit into 64 bits.
    """
    is_small = len(text) <= _MAX_SHARED_PARSER_BYTES
    parser = _SHARED_PARSER if is_small else simdjson.Parser()
    try:
        numbers = parser.parse(text)
        return np.frombuffer(numbers.as_buffer(of_type="d"))  # type: ignore[union-attr]
    # RuntimeError: another thread is using the shared parser. The caller parses with orjson then.
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return None
