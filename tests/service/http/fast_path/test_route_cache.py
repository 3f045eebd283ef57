"""Requests with and without query parameters: directly to the endpoint, and through FastAPI."""

import numpy as np
import orjson
import pytest

from tests.pictures import Pixels, encode
from tests.service.serving import PNG, Application

INFER = "/v2/models/digits/infer"


def request(digit: Pixels) -> bytes:
    values = (digit / 255).astype(np.float32)
    tensor = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32"}
    return orjson.dumps({"inputs": [{**tensor, "data": values.ravel().tolist()}]})


@pytest.mark.parametrize("path", ["/predict", "/uncertainty"])
def test_query_that_names_the_default_model_gives_the_same_bytes(
    service: Application, digit: Pixels, path: str
) -> None:
    direct = service.post(path, encode(digit), headers=PNG)
    named = service.post(f"{path}?model=digits", encode(digit), headers=PNG)
    assert direct.status_code == named.status_code == 200
    assert direct.content == named.content


def test_infer_ignores_query_parameters(service: Application, digit: Pixels) -> None:
    direct, routed = (service.post(INFER + query, request(digit)) for query in ("", "?trace=1"))
    assert direct.status_code == routed.status_code == 200
    assert direct.content == routed.content


@pytest.mark.parametrize("path", ["/predict", "/uncertainty", INFER])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_fast_path_route_refuses_other_methods(
    service: Application, path: str, method: str
) -> None:
    answer = service.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_errors_are_the_same_with_and_without_a_query(service: Application) -> None:
    answers = [service.post(f"/predict{query}", b"x", headers=PNG) for query in ("", "?version=1")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()
