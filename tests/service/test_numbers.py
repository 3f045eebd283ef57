"""A request's JSON: read as orjson reads it, but for the one long list of numbers."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import numbers
from service.errors import InvalidJsonError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.lists(st.one_of(FINITE, st.integers(-(2**60), 2**60)), max_size=20)
KEYS = st.sampled_from(["data", "inputs", "datatype", "name", "a]", '"data":[1]', ""])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), FINITE, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def plain(value: Any) -> Any:
    """Arrays as the lists they stand for."""
    match value:
        case np.ndarray():
            return value.tolist()
        case dict():
            return {name: plain(each) for name, each in value.items()}
        case list():
            return [plain(each) for each in value]
    return value


def request(data: Any, fields: dict[str, Any]) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "data": data}], **fields})


@given(NUMBERS)
def test_a_flat_list_of_numbers_is_an_array(data: list[float]) -> None:
    (tensor,) = numbers.read(request(data, {}))["inputs"]
    assert isinstance(tensor["data"], np.ndarray)
    np.testing.assert_array_equal(tensor["data"], np.array(data, np.float64))


@given(VALUES, st.dictionaries(KEYS, VALUES, max_size=3))
def test_anything_else_is_read_as_orjson_reads_it(data: Any, fields: dict[str, Any]) -> None:
    for text in (request(data, fields), orjson.dumps(fields), orjson.dumps([data])):
        assert plain(numbers.read(text)) == orjson.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{"datatype":"FP32","data":[1],"d\\u0061ta":null}]}',
        '{"inputs":[{"datatype":"FP32","d\\u0061ta":null}],"parameters":{"data":[1,2]}}',
        '{"inputs":[{"datatype":"FP32","data":[1],"data":[2]}]}',
        '{"inputs":[{"datatype":"FP32","data":[1,[2],[]]}]}',
        '{"inputs":[{"datatype":"FP32","data":[1,true]}]}',
        '{"inputs":[{"datatype":"UINT8","data":[1,2]}]}',
        '{"inputs":[{"datatype":"FP32","data":[123456789012345678901234567890]}]}',
    ],
)
def test_what_only_looks_like_it_is_read_as_orjson_reads_it(text: str) -> None:
    assert numbers.read(text.encode()) == orjson.loads(text)


@pytest.mark.parametrize("text", ["", "{", '{"data":}', '{"data":[1,]}', '{"data":[NaN]}', "x"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError, match="JSON cannot be read"):
        numbers.read(text.encode())
