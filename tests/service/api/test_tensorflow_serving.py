"""/v1 as the clients of TensorFlow Serving and of KServe's V1 protocol use it."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.pictures import Pixels, encode, numbers
from tests.service.serving import Application, check_error

FLOAT32_TOLERANCE = 1e-5
"""Relative tolerance of a float32 probability: e^-30 has an error of 30 roundings of 6e-8."""
PREDICT = "/v1/models/digits:predict"


def row_request(images: list[Any], **more: Any) -> Any:
    return {"instances": images, **more}


@pytest.mark.parametrize("folder", ["", "/versions/1"])
def test_v1_predict_returns_one_row_of_all_outputs_per_image(
    service: Application, digits: Pixels, folder: str
) -> None:
    images = [numbers(digit) for digit in digits[:3]]
    path = f"/v1/models/digits{folder}:predict"
    rows = service.post(path, json=row_request(images)).json()["predictions"]
    native = service.post("/predict", json=row_request(images)).json()["predictions"]
    assert [row["label"] for row in rows] == [each["label"] for each in native]
    for row, each in zip(rows, native, strict=True):
        expected = list(each["probabilities"].values())
        np.testing.assert_allclose(row["probabilities"], expected, rtol=FLOAT32_TOLERANCE)


def test_v1_predict_accepts_encoded_and_named_images(service: Application, digit: Pixels) -> None:
    file = {"b64": base64.b64encode(encode(digit)).decode()}
    images = [numbers(digit), {"images": numbers(digit)}, file, {"images": file}]
    answer = service.post(
        PREDICT, json=row_request(images, signature_name="serving_default")
    ).json()
    assert len({str(row) for row in answer["predictions"]}) == 1


def written_by_clients(file: bytes) -> dict[str, str]:
    """Return base64 of a file as different clients write it."""
    text = base64.b64encode(file).decode()
    lines = [text[start : start + 76] for start in range(0, len(text), 76)]
    return {
        "lines": "\r\n".join(lines) + "\r\n",
        "indented": "\n    ".join(lines),
        "URL-safe": base64.urlsafe_b64encode(file).decode(),
        "unpadded": text.rstrip("="),
        "URL-safe and unpadded": base64.urlsafe_b64encode(file).decode().rstrip("="),
        "data URL": "data:image/png;base64," + text,
        "data URL with a name": "data:image/png;name=a.png;BASE64," + "\n".join(lines),
        "padded twice": text.rstrip("=") + "====",
    }


@pytest.mark.parametrize("large", [False, True])
def test_base64_is_read_as_clients_write_it_on_every_route(
    service: Application, digit: Pixels, large: bool
) -> None:
    """A large body is read in a sandbox process, with the same code."""
    file = encode(digit) + (bytes(range(256)) * 96 if large else b"")
    texts = written_by_clients(file)
    assert {"+", "/"} & set(texts["lines"]) or not large
    for name, text in texts.items():
        (native,) = service.post("/predict", json=row_request([{"b64": text}])).json()[
            "predictions"
        ]
        (row,) = service.post(PREDICT, json=row_request([{"b64": text}])).json()["predictions"]
        tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [text]}
        answer = service.post("/v2/models/digits/infer", json={"inputs": [tensor]})
        labels = {each["name"]: each["data"] for each in answer.json()["outputs"]}["label"]
        assert [native["label"]] == [row["label"]] == labels, name


def test_v1_predict_of_the_mc_model_returns_uncertainty(
    service: Application, digit: Pixels
) -> None:
    answer = service.post("/v1/models/digits-mc:predict", json=row_request([numbers(digit)])).json()
    (row,) = answer["predictions"]
    assert len(row["mean_probabilities"]) == 10
    assert 0 <= row["mutual_information"] <= row["predictive_entropy"]


@pytest.mark.parametrize("path", ["/v1/models/digits", "/v1/models/digits/versions/1"])
def test_v1_status_has_the_fields_of_tensorflow_serving_and_kserve(
    service: Application, path: str
) -> None:
    status = service.get(path).json()
    assert (status["name"], status["ready"]) == ("digits", True)
    (version,) = status["model_version_status"]
    assert (version["version"], version["state"]) == ("1", "AVAILABLE")
    assert service.get("/v1/models").json() == {"models": ["digits"]}


@pytest.mark.parametrize("model", ["/v1/models/digits", "/v1/models/digits/versions/1"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_v1_predict_takes_post_alone(service: Application, model: str, method: str) -> None:
    answer = service.request(method, f"{model}:predict")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("model", ["/v1/models/digits", "/v1/models/digits/versions/1"])
@pytest.mark.parametrize("verb", ["classify", "regress", "explain", ""])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_v1_has_no_other_verb(service: Application, model: str, verb: str, method: str) -> None:
    answer = service.request(method, f"{model}:{verb}")
    check_error(answer, 404, "not_found", f"There is nothing at {model}:{verb}; …")
