"""A request's JSON is read as orjson reads it, but for the one long list of numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.codecs.tensors import InferRequest, parse
from service.errors import InvalidJsonError, InvalidRequestError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.lists(st.one_of(FINITE, st.integers(-(2**60), 2**60)), max_size=20)
KEYS = st.sampled_from(["data", "inputs", "datatype", "name", "a]", '"data":[1]', ""])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), FINITE, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def request(data: Any, fields: dict[str, Any]) -> bytes:
    tensor = {"name": "x", "shape": [0], "datatype": "FP32", "data": data}
    return orjson.dumps({"inputs": [tensor], **fields})


def outcome(read: Callable[[], InferRequest]) -> Any:
    try:
        return read().model_dump()
    except (ValidationError, InvalidRequestError):
        return None


def read_whole(text: bytes) -> Any:
    """What pydantic makes of all that orjson reads; None: no request."""
    return outcome(lambda: InferRequest.model_validate(orjson.loads(text)))


def read(text: bytes) -> Any:
    """The same of what the service reads, its array in the list's place."""

    def parsed() -> InferRequest:
        found, payload = parse(text, None)
        if payload.numbers is None:
            return found
        (tensor,) = found.inputs
        filled = tensor.model_copy(update={"data": payload.numbers.tolist()})
        return found.model_copy(update={"inputs": [filled]})

    return outcome(parsed)


@given(NUMBERS)
def test_a_flat_list_of_numbers_is_an_array(data: list[float]) -> None:
    _, payload = parse(request(data, {}), None)
    assert payload.numbers is not None
    np.testing.assert_array_equal(payload.numbers, np.array(data, np.float64))


@given(VALUES, st.dictionaries(KEYS, VALUES, max_size=3))
def test_anything_else_is_read_as_a_whole(data: Any, fields: dict[str, Any]) -> None:
    for text in (request(data, fields), orjson.dumps(fields), orjson.dumps([data])):
        assert read(text) == read_whole(text)


TENSOR = '"name":"x","shape":[1],"datatype":"FP32"'


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{TENSOR,"data":[1],"d\\u0061ta":null}]}',
        '{"inputs":[{TENSOR,"d\\u0061ta":null}],"parameters":{"data":[1,2]}}',
        '{"inputs":[{TENSOR}],"data":[1,2]}',
        '{"inputs":[{TENSOR}],"outputs":[{"name":"y","data":[1,2]}]}',
        '{"inputs":[{TENSOR,"data":[1],"data":[2]}]}',
        '{"inputs":[{TENSOR,"data":[1,[2],[]]}]}',
        '{"inputs":[{TENSOR,"data":[1,true]}]}',
        '{"inputs":[{TENSOR,"data":[1,2],"datatype":"UINT8"}]}',
        '{"inputs":[{TENSOR,"data":[123456789012345678901234567890]}]}',
    ],
)
def test_what_only_looks_like_it_is_read_as_a_whole(text: str) -> None:
    body = text.replace("TENSOR", TENSOR).encode()
    assert read(body) == read_whole(body)


def test_a_description_that_is_remembered_lends_nobody_its_numbers() -> None:
    first, second = (parse(request([value], {}), None) for value in (0.25, 0.75))
    assert first[0] is second[0]
    numbers = [payload.numbers for _, payload in (first, second)]
    np.testing.assert_array_equal(numbers, [[0.25], [0.75]])


@pytest.mark.parametrize("text", ["", "{", '{"data":}', '{"data":[1,]}', '{"data":[NaN]}', "x"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError, match="JSON cannot be read"):
        parse(text.encode(), None)
