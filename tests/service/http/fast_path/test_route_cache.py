"""The way past FastAPI: the same answers and errors as through it."""

from typing import Any

import numpy as np
import orjson
import pytest

from service.sandbox.image_reader import _is_brief
from tests.pictures import Pixels, encode
from tests.service.serving import PNG, Application

INFER = "/v2/models/digits/infer"


def request(digit: Pixels) -> bytes:
    values = (digit / 255).astype(np.float32)
    tensor = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32"}
    return orjson.dumps({"inputs": [{**tensor, "data": values.ravel().tolist()}]})


@pytest.mark.parametrize("path", ["/predict", "/uncertainty"])
def test_an_empty_query_and_the_model_named_give_the_same_bytes(
    service: Application, digit: Pixels, path: str
) -> None:
    express = service.post(path, encode(digit), headers=PNG)
    named = service.post(f"{path}?model=digits", encode(digit), headers=PNG)
    assert express.status_code == named.status_code == 200
    assert express.content == named.content


def test_infer_with_a_query_is_answered_as_without(service: Application, digit: Pixels) -> None:
    express, other = (service.post(INFER + query, request(digit)) for query in ("", "?trace=1"))
    assert express.status_code == other.status_code == 200
    assert express.content == other.content


@pytest.mark.parametrize("path", ["/predict", "/uncertainty", INFER])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_refused(service: Application, path: str, method: str) -> None:
    answer = service.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_an_error_has_the_same_words(service: Application) -> None:
    answers = [service.post(f"/predict{query}", b"x", headers=PNG) for query in ("", "?version=1")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("files", "brief"),
    [
        ([b"\x89PNG" + bytes(300)], True),
        ([b"\x89PNG" + bytes(20_000)], False),
        ([b"\x89PNG" + bytes(9_000)] * 2, False),
        ([b"\xff\xd8" + b"\xff\xda" * 100], False),
    ],
)
def test_only_what_is_decoded_fast_is_decoded_on_the_event_loop(
    files: list[Any], brief: bool
) -> None:
    assert _is_brief(files) is brief
