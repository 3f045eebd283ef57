"""/v1 as TensorFlow Serving's and KServe's V1 clients use it."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.pictures import Pixels, encode, numbers
from tests.service.serving import Application

SINGLE = 1e-5
"""Of a probability, as float32 computes it: one of e^-30 has an error of 30 roundings of 6e-8."""
PREDICT = "/v1/models/digits:predict"


def asked(images: list[Any], **more: Any) -> Any:
    return {"instances": images, **more}


@pytest.mark.parametrize("folder", ["", "/versions/1"])
def test_predictions_are_rows_of_every_output(
    service: Application, digits: Pixels, folder: str
) -> None:
    images = [numbers(digit) for digit in digits[:3]]
    path = f"/v1/models/digits{folder}:predict"
    rows = service.post(path, json=asked(images)).json()["predictions"]
    plain = service.post("/predict", json=asked(images)).json()["predictions"]
    assert [row["label"] for row in rows] == [each["label"] for each in plain]
    for row, each in zip(rows, plain, strict=True):
        wanted = list(each["probabilities"].values())
        np.testing.assert_allclose(row["probabilities"], wanted, rtol=SINGLE)


def test_an_image_may_be_encoded_or_named(service: Application, digit: Pixels) -> None:
    file = {"b64": base64.b64encode(encode(digit)).decode()}
    given = [numbers(digit), {"images": numbers(digit)}, file, {"images": file}]
    answer = service.post(PREDICT, json=asked(given, signature_name="serving_default")).json()
    assert len({str(row) for row in answer["predictions"]}) == 1


def test_the_model_with_dropout_alive_says_how_sure_it_is(
    service: Application, digit: Pixels
) -> None:
    answer = service.post("/v1/models/digits-mc:predict", json=asked([numbers(digit)])).json()
    (row,) = answer["predictions"]
    assert len(row["mean_probabilities"]) == 10
    assert 0 <= row["mutual_information"] <= row["predictive_entropy"]


@pytest.mark.parametrize("path", ["/v1/models/digits", "/v1/models/digits/versions/1"])
def test_the_status_is_what_both_kinds_of_client_read(service: Application, path: str) -> None:
    told = service.get(path).json()
    assert (told["name"], told["ready"]) == ("digits", True)
    (version,) = told["model_version_status"]
    assert (version["version"], version["state"]) == ("1", "AVAILABLE")
    assert service.get("/v1/models").json() == {"models": ["digits"]}
