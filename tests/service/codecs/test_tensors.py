"""Open Inference requests and responses, in JSON and binary: values survive a round trip."""

from contextlib import suppress
from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.codecs.infer_requests import InferRequest, parse_request, read_inputs
from service.codecs.infer_responses import top_classes, write_response
from service.codecs.tensors import Tensor
from service.errors import InvalidJsonError, InvalidRequestError, InvalidTensorError

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)
NUMBERS = st.one_of(
    arrays.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    arrays.arrays(np.uint8, SHAPES),
)


def datatype(values: Any) -> str:
    return {"float32": "FP32", "uint8": "UINT8"}.get(str(values.dtype), "BYTES")


def request(values: Any, data: Any) -> bytes:
    tensor = {"name": "x", "shape": values.shape, "datatype": datatype(values), "data": data}
    return orjson.dumps({"inputs": [tensor]})


def read(body: bytes, length: int | None = None) -> list[Tensor]:
    return read_inputs(*parse_request(body, length))


@given(NUMBERS, st.booleans())
def test_read_inputs_accepts_nested_and_flat_numbers(values: Any, nested: bool) -> None:
    (tensor,) = read(request(values, (values if nested else values.ravel()).tolist()))
    assert (tensor.name, tensor.datatype) == ("x", datatype(values))
    assert tensor.values.shape == values.shape
    assert (tensor.values == values).all()


@given(NUMBERS, NUMBERS)
def test_read_inputs_reads_binary_tensors_in_order(one: Any, other: Any) -> None:
    described = [
        {
            "name": name,
            "shape": values.shape,
            "datatype": datatype(values),
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in (("one", one), ("other", other))
    ]
    head = orjson.dumps({"inputs": described})
    tensors = read(head + one.tobytes() + other.tobytes(), len(head))
    assert [tensor.name for tensor in tensors] == ["one", "other"]
    for tensor, values in zip(tensors, (one, other), strict=True):
        assert tensor.values.dtype == values.dtype
        assert (tensor.values == values).all()


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_read_inputs_returns_the_bytes_elements(elements: list[bytes]) -> None:
    blob = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    described = {
        "name": "x",
        "shape": [len(elements)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(blob)},
    }
    head = orjson.dumps({"inputs": [described]})
    (tensor,) = read(head + blob, len(head))
    assert tensor.values.tolist() == elements


@given(NUMBERS, st.lists(st.text(max_size=5), min_size=1, max_size=4), st.booleans())
def test_write_response_writes_json_and_binary_outputs(
    values: Any, words: list[str], binary: bool
) -> None:
    words = [word.rstrip("\0") for word in words]  # NumPy pads text with them
    tensors = [
        Tensor("numbers", "FP32", values.astype(np.float32)),
        Tensor("words", "BYTES", np.array([word.encode() for word in words], object)),
    ]
    infer_request = InferRequest.model_validate(
        {
            "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}],
            "parameters": {"binary_data_output": binary},
        }
    )
    body, length = write_response({"id": "7"}, tensors, infer_request)
    assert (length is not None) is binary
    content = orjson.loads(body[:length])
    assert content["id"] == "7"
    offset = length or 0
    for tensor, described in zip(tensors, content["outputs"], strict=True):
        assert (described["name"], described["shape"]) == (tensor.name, list(tensor.values.shape))
        if not binary:
            continue
        size = described["parameters"]["binary_data_size"]
        assert "data" not in described
        blob = body[offset : offset + size]
        offset += size
        if tensor.datatype == "FP32":
            assert blob == tensor.values.astype("<f4").tobytes()
    if binary:
        assert offset == len(body)
    else:
        numbers, strings = (described["data"] for described in content["outputs"])
        assert (np.array(numbers, np.float32) == tensors[0].values.ravel()).all()
        assert strings == words


def test_write_response_lets_an_output_override_the_binary_default() -> None:
    tensors = [Tensor(name, "FP32", np.ones((1, 2), np.float32)) for name in ("a", "b", "c")]
    requested = [
        {"name": "c", "parameters": {"binary_data": False}},
        {"name": "a"},
    ]
    infer_request = InferRequest.model_validate(
        {
            "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}],
            "parameters": {"binary_data_output": True},
            "outputs": requested,
        }
    )
    body, length = write_response({}, tensors, infer_request)
    first, second = orjson.loads(body[:length])["outputs"]
    assert (first["name"], first["data"]) == ("c", [1.0, 1.0])
    assert (second["name"], second["parameters"]) == ("a", {"binary_data_size": 8})


def test_top_classes_sorts_scores_with_index_and_label() -> None:
    scores = Tensor("p", "FP32", np.array([[0.25, 0.5, 0.25], [1, 0, 0]], np.float32))
    top = top_classes(scores, 2, ["ape", "bee", "cat"])
    assert top.values.tolist() == [
        [b"0.500000:1:bee", b"0.250000:0:ape"],
        [b"1.000000:0:ape", b"0.000000:1:bee"],
    ]
    assert top_classes(scores, 99, ["ape", "bee", "cat"]).values.shape == (2, 3)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_parse_request_reads_or_refuses_any_bytes(body: bytes, length: int) -> None:
    with suppress(InvalidJsonError, InvalidRequestError, InvalidTensorError):
        assert read(body, length)
