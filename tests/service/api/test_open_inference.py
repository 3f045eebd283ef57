"""/v2 as its clients use it: what it says of itself, and answers that are those of /predict."""

import base64
import gzip
import zlib
from typing import Any

import numpy as np
import orjson
import pytest

from service.api.open_inference import LENGTH_HEADER
from tests.pictures import Pixels, encode, instances
from tests.service.serving import JSON, Application, predictions

INFER = "/v2/models/digits/infer"
SINGLE = 1e-5
"""Of a probability, as float32 computes it: one of e^-30 has an error of 30 roundings of 6e-8."""
TINY = 1e-7
"""Of an entropy or a deviation, the difference of larger numbers."""
SAMPLED = "/v2/models/digits-mc/infer"


def ones(digits: Pixels, count: int) -> Any:
    """Digits as FP32 [N, 1, 8, 8] in 0..1."""
    return digits[:count, None].astype(np.float32) / np.float32(255)


def request(values: Any, **more: Any) -> bytes:
    described = {"name": "images", "shape": values.shape, "datatype": "FP32"}
    return orjson.dumps({"inputs": [described | {"data": values.ravel().tolist()}], **more})


def outputs(content: Any) -> dict[str, Any]:
    return {each["name"]: each["data"] for each in content["outputs"]}


def test_the_server_says_what_it_is_and_lives(service: Application) -> None:
    for path in ("/v2", "/v2/"):
        told = service.get(path).json()
        assert set(told) == {"name", "version", "extensions"}
        assert "binary_tensor_data" in told["extensions"]
    assert service.get("/v2/health/live").json() == {"live": True}
    assert service.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("folder", ["", "/versions/1", "/versions/stable"])
@pytest.mark.parametrize("name", ["digits", "digits-mc"])
def test_a_model_says_what_it_takes_and_gives(service: Application, name: str, folder: str) -> None:
    path = f"/v2/models/{name}{folder}"
    told = service.get(path).json()
    assert (told["name"], told["versions"], told["platform"]) == (name, ["1"], "onnx_onnxv1")
    assert told["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert service.get(f"{path}/ready").json() == {"name": name, "ready": True}
    answer = service.post(f"{path}/infer", request(np.zeros((2, 1, 8, 8), np.float32))).json()
    assert (answer["model_name"], answer["model_version"]) == (name, "1")
    promised = {each["name"]: (each["datatype"], each["shape"][1:]) for each in told["outputs"]}
    given = {each["name"]: (each["datatype"], each["shape"][1:]) for each in answer["outputs"]}
    assert given == promised
    config = service.get(f"{path}/config").json()
    assert (config["name"], config["max_batch_size"]) == (name, 8)
    assert [each["dims"] for each in config["input"]] == [[1, 8, 8]]
    assert [each["name"] for each in config["output"]] == list(promised)


def test_answers_are_those_of_predict(service: Application, digits: Pixels) -> None:
    answer = outputs(service.post(INFER, request(ones(digits, 3))).json())
    plain = predictions(
        service.post("/predict", instances([encode(each) for each in digits[:3]]), headers=JSON)
    )
    assert answer["label"] == [each["label"] for each in plain]
    wanted = np.array([list(each["probabilities"].values()) for each in plain])
    np.testing.assert_allclose(answer["probabilities"], wanted.ravel(), rtol=SINGLE)


def test_answers_with_dropout_alive_are_those_of_uncertainty(
    service: Application, digits: Pixels
) -> None:
    asked = {"samples": 48, "seed": 7}
    answer = service.post(SAMPLED, request(ones(digits, 3), parameters=asked)).json()
    assert answer["parameters"] == {"method": "mc_dropout", **asked}
    found = predictions(
        service.post(
            "/uncertainty?samples=48&seed=7",
            instances([encode(each) for each in digits[:3]]),
            headers=JSON,
        )
    )
    given = outputs(answer)
    for name in ("predictive_entropy", "mutual_information", "variation_ratio"):
        assert given[name] == pytest.approx([each[name] for each in found], rel=SINGLE, abs=TINY)
    for name in ("probability_std", "standard_error"):
        wanted = [value for each in found for value in each[name].values()]
        assert given[name] == pytest.approx(wanted, rel=SINGLE, abs=TINY)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, {"method": "mc_dropout", "samples": 64, "seed": 0}),
        ({"samples": "auto"}, {"method": "mc_dropout", "samples": "auto", "seed": 0}),
        ({"samples": "8", "seed": "3"}, {"method": "mc_dropout", "samples": 8, "seed": 3}),
        ({"method": "analytic"}, {"method": "analytic"}),
        (
            {"samples": 2, "design": "independent"},
            {"method": "mc_dropout", "samples": 2, "seed": 0, "design": "independent"},
        ),
        ({"of_another_server": 1}, {"method": "mc_dropout", "samples": 64, "seed": 0}),
    ],
)
def test_the_answer_says_how_it_was_sampled(
    service: Application, digits: Pixels, asked: Any, told: Any
) -> None:
    answer = service.post(SAMPLED, request(ones(digits, 1), parameters=asked)).json()
    assert answer["parameters"] == told


@pytest.mark.parametrize("given", ["binary", "json", "uint8", "uint8 binary", "files", "base64"])
def test_every_form_of_the_input_gives_the_same_answer(
    service: Application, digits: Pixels, given: str
) -> None:
    pixels = digits[:2]
    values = ones(digits, 2)
    described: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8]}
    blob = b""
    match given:
        case "binary":
            blob = values.tobytes()
        case "json":
            described |= {"data": values.tolist()}
        case "uint8":
            described |= {"datatype": "UINT8", "data": pixels.ravel().tolist()}
        case "uint8 binary":
            described |= {"datatype": "UINT8"}
            blob = pixels.tobytes()
        case "files":
            files = [encode(each) for each in pixels]
            described |= {"datatype": "BYTES", "shape": [2]}
            blob = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        case "base64":
            texts = [base64.b64encode(encode(each)).decode() for each in pixels]
            described |= {"datatype": "BYTES", "shape": [2], "data": texts}
    if blob:
        described |= {"parameters": {"binary_data_size": len(blob)}}
    head = orjson.dumps({"inputs": [described]})
    headers = {LENGTH_HEADER: str(len(head))} if blob else {}
    answer = service.post(INFER, head + blob, headers=headers)
    assert answer.content == service.post(INFER, request(values)).content


def test_a_raw_request_is_one_image_answered_in_binary(
    service: Application, digits: Pixels
) -> None:
    values = ones(digits, 1)
    answer = service.post(INFER, values.tobytes(), headers={LENGTH_HEADER: "0"})
    assert answer.status_code == 200
    length = int(answer.headers[LENGTH_HEADER])
    told = orjson.loads(answer.content[:length])["outputs"]
    size = told[0]["parameters"]["binary_data_size"]
    probabilities = np.frombuffer(answer.content[length : length + size], "<f4")
    wanted = outputs(service.post(INFER, request(values)).json())["probabilities"]
    assert (probabilities == np.array(wanted, np.float32)).all()


@pytest.mark.parametrize(
    ("encoding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_answers_are_compressed_where_that_is_asked_for(
    service: Application, digits: Pixels, encoding: str, unpack: Any
) -> None:
    body = request(ones(digits, 2))
    told, plain = service.compressed(INFER, body, "identity")
    assert told == ""
    told, packed = service.compressed(INFER, body, encoding)
    assert (told, unpack(packed)) == (encoding, plain)


def test_the_id_comes_back(service: Application, digits: Pixels) -> None:
    for given, told in (("a b", "a b"), (7, "7"), ("", "")):
        answer = service.post(INFER, request(ones(digits, 1), id=given)).json()
        assert answer["id"] == told
    assert "id" not in service.post(INFER, request(ones(digits, 1))).json()


def test_the_highest_classes_can_be_asked_for(service: Application, digits: Pixels) -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 3}}
    answer = service.post(INFER, request(ones(digits, 2), outputs=[wanted])).json()
    (scores,) = answer["outputs"]
    assert (scores["datatype"], scores["shape"]) == ("BYTES", [2, 3])
    probabilities = outputs(service.post(INFER, request(ones(digits, 2))).json())["probabilities"]
    score, index, label = scores["data"][0].split(":")
    assert float(score) == pytest.approx(max(probabilities[:10]), abs=1e-6)
    assert (int(index), label) == (int(np.argmax(probabilities[:10])), index)


def test_requests_are_counted_by_model(service: Application, digits: Pixels) -> None:
    def counted(name: str) -> Any:
        (told,) = service.get(f"/v2/models/{name}/stats").json()["model_stats"]
        return told

    before = {name: counted(name) for name in ("digits", "digits-mc")}
    service.post(INFER, request(ones(digits, 3)))
    service.post(INFER, request(ones(digits, 2)[:, :, :4]))
    service.post(SAMPLED, request(ones(digits, 2)))
    after = {name: counted(name) for name in before}
    for name, images, failed in (("digits", 3, 1), ("digits-mc", 2, 0)):
        old, new = before[name], after[name]
        assert new["inference_count"] - old["inference_count"] == images
        assert new["execution_count"] - old["execution_count"] == 1
        assert new["last_inference"] >= old["last_inference"]
        for outcome, count in (("success", 1), ("fail", failed)):
            stats = [each["inference_stats"][outcome] for each in (old, new)]
            assert stats[1]["count"] - stats[0]["count"] == count
        spent = {part: each["ns"] for part, each in new["inference_stats"].items()}
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        assert all(spent[part] > 0 for part in parts)
    together = service.get("/v2/models/stats").json()["model_stats"]
    assert {each["name"] for each in together} == {"digits", "digits-mc"}


def test_the_index_lists_what_is_ready(service: Application) -> None:
    for body in (None, b"{}", b'{"ready": true}'):
        entries = service.post("/v2/repository/index", body).json()
        assert [(each["name"], each["state"]) for each in entries] == [
            ("digits", "READY"),
            ("digits-mc", "READY"),
        ]


def test_a_client_that_waits_shortly_is_told_in_time(service: Application, digits: Pixels) -> None:
    """A microsecond is over before the run has begun."""
    answer = service.post(INFER, request(ones(digits, 1), parameters={"timeout": 1}))
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    patient = service.post(INFER, request(ones(digits, 1), parameters={"timeout": 0}))
    assert patient.status_code == 200
