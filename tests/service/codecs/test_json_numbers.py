"""The JSON of a request is parsed as by orjson, except for the long list of numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.codecs.infer_requests import InferRequest, parse_request
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
    """Parse with orjson and pydantic alone; None for an invalid request."""
    return outcome(lambda: InferRequest.model_validate(orjson.loads(text)))


def read(text: bytes) -> Any:
    """Parse as the service does, and put the array in place of the list."""

    def parsed() -> InferRequest:
        infer_request, payload = parse_request(text, None)
        if payload.numbers is None:
            return infer_request
        (tensor,) = infer_request.inputs
        filled = tensor.model_copy(update={"data": payload.numbers.tolist()})
        return infer_request.model_copy(update={"inputs": [filled]})

    return outcome(parsed)


@given(NUMBERS)
def test_parse_request_reads_a_flat_list_of_numbers_as_an_array(data: list[float]) -> None:
    _, payload = parse_request(request(data, {}), None)
    assert payload.numbers is not None
    np.testing.assert_array_equal(payload.numbers, np.array(data, np.float64))


@given(VALUES, st.dictionaries(KEYS, VALUES, max_size=3))
def test_parse_request_reads_any_other_json_as_orjson_does(
    data: Any, fields: dict[str, Any]
) -> None:
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
def test_parse_request_reads_ambiguous_data_keys_as_orjson_does(text: str) -> None:
    body = text.replace("TENSOR", TENSOR).encode()
    assert read(body) == read_whole(body)


def test_cached_requests_do_not_share_their_numbers() -> None:
    first, second = (parse_request(request([value], {}), None) for value in (0.25, 0.75))
    assert first[0] is second[0]
    numbers = [payload.numbers for _, payload in (first, second)]
    np.testing.assert_array_equal(numbers, [[0.25], [0.75]])


@pytest.mark.parametrize("text", ["", "{", '{"data":}', '{"data":[1,]}', '{"data":[NaN]}', "x"])
def test_parse_request_refuses_invalid_json(text: str) -> None:
    with pytest.raises(InvalidJsonError, match="JSON cannot be read"):
        parse_request(text.encode(), None)
