"""/v2 as its clients use it: metadata, inference in every encoding, statistics and the index."""

import base64
import gzip
import zlib
from typing import Any

import numpy as np
import orjson
import pytest

from service.api.open_inference import LENGTH_HEADER
from tests.pictures import Pixels, encode, instances
from tests.service.serving import JSON, Application, check_error, predictions

INFER = "/v2/models/digits/infer"
FLOAT32_TOLERANCE = 1e-5
"""Relative tolerance of a float32 probability: e^-30 has an error of 30 roundings of 6e-8."""
ABSOLUTE_TOLERANCE = 1e-7
"""Absolute tolerance of an entropy or a deviation, which are differences of larger numbers."""
INFER_MC = "/v2/models/digits-mc/infer"


def to_input(digits: Pixels, count: int) -> Any:
    """Convert the first `count` digits to float32 [count, 1, 8, 8] in 0..1."""
    return digits[:count, None].astype(np.float32) / np.float32(255)


def request(values: Any, **more: Any) -> bytes:
    described = {"name": "images", "shape": values.shape, "datatype": "FP32"}
    return orjson.dumps({"inputs": [described | {"data": values.ravel().tolist()}], **more})


def outputs(content: Any) -> dict[str, Any]:
    return {each["name"]: each["data"] for each in content["outputs"]}


def test_v2_returns_server_metadata_and_health(service: Application) -> None:
    for path in ("/v2", "/v2/"):
        metadata = service.get(path).json()
        assert set(metadata) == {"name", "version", "extensions"}
        assert "binary_tensor_data" in metadata["extensions"]
    assert service.get("/v2/health/live").json() == {"live": True}
    assert service.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("folder", ["", "/versions/1", "/versions/stable"])
@pytest.mark.parametrize("name", ["digits", "digits-mc"])
def test_v2_metadata_matches_the_outputs_of_inference(
    service: Application, name: str, folder: str
) -> None:
    path = f"/v2/models/{name}{folder}"
    metadata = service.get(path).json()
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (
        name,
        ["1"],
        "onnx_onnxv1",
    )
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert service.get(f"{path}/ready").json() == {"name": name, "ready": True}
    answer = service.post(f"{path}/infer", request(np.zeros((2, 1, 8, 8), np.float32))).json()
    assert (answer["model_name"], answer["model_version"]) == (name, "1")
    declared = {each["name"]: (each["datatype"], each["shape"][1:]) for each in metadata["outputs"]}
    returned = {each["name"]: (each["datatype"], each["shape"][1:]) for each in answer["outputs"]}
    assert returned == declared
    config = service.get(f"{path}/config").json()
    assert (config["name"], config["max_batch_size"]) == (name, 8)
    assert [each["dims"] for each in config["input"]] == [[1, 8, 8]]
    assert [each["name"] for each in config["output"]] == list(declared)


def test_v2_infer_returns_the_predictions_of_predict(service: Application, digits: Pixels) -> None:
    answer = outputs(service.post(INFER, request(to_input(digits, 3))).json())
    native = predictions(
        service.post("/predict", instances([encode(each) for each in digits[:3]]), headers=JSON)
    )
    assert answer["label"] == [each["label"] for each in native]
    expected = np.array([list(each["probabilities"].values()) for each in native])
    np.testing.assert_allclose(answer["probabilities"], expected.ravel(), rtol=FLOAT32_TOLERANCE)


def test_v2_infer_of_the_mc_model_returns_the_values_of_uncertainty(
    service: Application, digits: Pixels
) -> None:
    sampling = {"samples": 48, "seed": 7}
    answer = service.post(INFER_MC, request(to_input(digits, 3), parameters=sampling)).json()
    assert answer["parameters"].items() >= {"method": "mc_dropout", **sampling}.items()
    native = predictions(
        service.post(
            "/uncertainty?samples=48&seed=7",
            instances([encode(each) for each in digits[:3]]),
            headers=JSON,
        )
    )
    tensors = outputs(answer)
    for name in ("predictive_entropy", "mutual_information", "variation_ratio"):
        assert tensors[name] == pytest.approx(
            [each[name] for each in native], rel=FLOAT32_TOLERANCE, abs=ABSOLUTE_TOLERANCE
        )
    for name in ("probability_std", "standard_error"):
        expected = [value for each in native for value in each[name].values()]
        assert tensors[name] == pytest.approx(
            expected, rel=FLOAT32_TOLERANCE, abs=ABSOLUTE_TOLERANCE
        )


@pytest.mark.parametrize(
    ("sent", "returned"),
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
def test_v2_infer_returns_the_sampling_parameters(
    service: Application, digits: Pixels, sent: Any, returned: Any
) -> None:
    answer = service.post(INFER_MC, request(to_input(digits, 1), parameters=sent)).json()
    limits = {name: answer["parameters"].pop(name) for name in ("max_risk", "max_false_alarm")}
    assert answer["parameters"] == returned
    assert limits["max_false_alarm"] == 0.01
    assert limits["max_risk"] in (0.01, 0.02, 0.05, 0.1, 0.2)


def test_v2_infer_returns_the_limits_that_were_used(service: Application, digits: Pixels) -> None:
    sent = {"max_risk": 0.3, "max_false_alarm": "0.2"}
    answer = service.post(INFER_MC, request(to_input(digits, 1), parameters=sent)).json()
    assert answer["parameters"].items() >= {"max_risk": 0.3, "max_false_alarm": 0.2}.items()
    plain = service.post(INFER, request(to_input(digits, 1), parameters=sent)).json()
    assert "parameters" not in plain


def test_v2_infer_sends_abstention_in_binary_too(service: Application, digits: Pixels) -> None:
    """BOOL is one byte each; BYTES has the length of each element before it."""
    names = ("abstain", "abstain_because", "typicality")
    requested = [{"name": name} for name in names]
    more = {"parameters": {"max_risk": 1e-9}, "outputs": requested}
    values = to_input(digits, 3)
    expected = outputs(service.post(INFER_MC, request(values, **more)).json())
    assert expected["abstain"] == [True] * 3
    more["parameters"] = {"max_risk": 1e-9, "binary_data_output": True}
    answer = service.post(INFER_MC, request(values, **more))
    length = int(answer.headers[LENGTH_HEADER])
    blob = answer.content[length:]
    sizes = [
        each["parameters"]["binary_data_size"]
        for each in orjson.loads(answer.content[:length])["outputs"]
    ]
    assert (sizes[0], sum(sizes)) == (3, len(blob))
    assert blob[:3] == b"\x01\x01\x01"
    reasons = b"".join(
        len(reason).to_bytes(4, "little") + reason.encode()
        for reason in expected["abstain_because"]
    )
    assert blob[3 : 3 + sizes[1]] == reasons
    typicality = np.frombuffer(blob[-12:], "<f4")
    assert typicality.tolist() == np.array(expected["typicality"], np.float32).tolist()


@pytest.mark.parametrize(
    "encoding",
    ["binary", "json", "uint8", "uint8 binary", "files", "base64", "mlserver", "mlserver binary"],
)
def test_v2_infer_accepts_every_encoding_of_the_input(
    service: Application, digits: Pixels, encoding: str
) -> None:
    pixels = digits[:2]
    values = to_input(digits, 2)
    described: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8]}
    blob = b""
    match encoding:
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
        case "mlserver":
            texts = [base64.b64encode(encode(each)).decode() for each in pixels]
            described |= {"datatype": "BYTES", "shape": [2, 1], "data": texts}
            described |= {"parameters": {"content_type": "base64", "headers": {"a": ["b"]}}}
        case "mlserver binary":
            files = [base64.b64encode(encode(each)) for each in pixels]
            described |= {"datatype": "BYTES", "shape": [2, 1]}
            described |= {"parameters": {"content_type": "base64"}}
            blob = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    if blob:
        parameters = described.get("parameters", {})
        described |= {"parameters": parameters | {"binary_data_size": len(blob)}}
    head = orjson.dumps({"inputs": [described]})
    headers = {LENGTH_HEADER: str(len(head))} if blob else {}
    answer = service.post(INFER, head + blob, headers=headers)
    assert answer.content == service.post(INFER, request(values)).content


def test_v2_infer_ignores_parameters_that_are_objects(service: Application, digits: Pixels) -> None:
    """MLServer's clients send the headers of the request as a parameter."""
    plain = orjson.loads(request(to_input(digits, 1)))
    described = plain | {"parameters": {"headers": {"ce-id": "1"}, "trace": None, "tags": [1]}}
    expected = service.post(INFER, orjson.dumps(plain)).json()
    assert service.post(INFER, orjson.dumps(described)).json() == expected


@pytest.mark.parametrize(
    "name",
    [
        *("method", "samples", "seed", "design", "max_risk", "max_false_alarm"),
        *("timeout", "binary_data_output"),
    ],
)
def test_v2_infer_takes_a_parameter_that_is_null_as_left_out(
    service: Application, digits: Pixels, name: str
) -> None:
    values = to_input(digits, 1)
    answer = service.post(INFER_MC, request(values, parameters={name: None}))
    assert answer.content == service.post(INFER_MC, request(values)).content


def test_v2_infer_takes_parameters_of_tensors_that_are_null_as_left_out(
    service: Application, digits: Pixels
) -> None:
    outputs = [{"name": "probabilities"}]
    plain = orjson.loads(request(to_input(digits, 1), outputs=outputs))
    expected = service.post(INFER, orjson.dumps(plain))
    plain["inputs"][0]["parameters"] = {"binary_data_size": None}
    plain["outputs"][0]["parameters"] = {"binary_data": None, "classification": None}
    assert service.post(INFER, orjson.dumps(plain)).content == expected.content


@pytest.mark.parametrize(("value", "quoted"), [([None], "[null]"), ("yes", '"yes"'), (1, "1")])
def test_v2_infer_quotes_a_wrong_parameter_as_json(
    service: Application, digits: Pixels, value: Any, quoted: str
) -> None:
    parameters = {"binary_data_output": value}
    answer = service.post(INFER, request(to_input(digits, 1), parameters=parameters))
    sentence = f"The request: 'binary_data_output' is true or false, but got {quoted}."
    check_error(answer, 400, "invalid_tensor", sentence)


def test_v2_infer_answers_a_raw_request_in_binary(service: Application, digits: Pixels) -> None:
    values = to_input(digits, 1)
    answer = service.post(INFER, values.tobytes(), headers={LENGTH_HEADER: "0"})
    assert answer.status_code == 200
    length = int(answer.headers[LENGTH_HEADER])
    described = orjson.loads(answer.content[:length])["outputs"]
    size = described[0]["parameters"]["binary_data_size"]
    probabilities = np.frombuffer(answer.content[length : length + size], "<f4")
    expected = outputs(service.post(INFER, request(values)).json())["probabilities"]
    assert (probabilities == np.array(expected, np.float32)).all()


@pytest.mark.parametrize(
    ("encoding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_v2_infer_compresses_the_response_by_accept_encoding(
    service: Application, digits: Pixels, encoding: str, decompress: Any
) -> None:
    body = request(to_input(digits, 2))
    content_encoding, plain = service.compressed(INFER, body, "identity")
    assert content_encoding == ""
    content_encoding, compressed = service.compressed(INFER, body, encoding)
    assert (content_encoding, decompress(compressed)) == (encoding, plain)


def test_v2_infer_returns_the_request_id(service: Application, digits: Pixels) -> None:
    for sent, returned in (("a b", "a b"), (7, "7"), ("", "")):
        answer = service.post(INFER, request(to_input(digits, 1), id=sent)).json()
        assert answer["id"] == returned
    assert "id" not in service.post(INFER, request(to_input(digits, 1))).json()


def test_v2_infer_returns_the_top_classes(service: Application, digits: Pixels) -> None:
    requested = {"name": "probabilities", "parameters": {"classification": 3}}
    answer = service.post(INFER, request(to_input(digits, 2), outputs=[requested])).json()
    (scores,) = answer["outputs"]
    assert (scores["datatype"], scores["shape"]) == ("BYTES", [2, 3])
    probabilities = outputs(service.post(INFER, request(to_input(digits, 2))).json())[
        "probabilities"
    ]
    score, index, label = scores["data"][0].split(":")
    assert float(score) == pytest.approx(max(probabilities[:10]), abs=1e-6)
    assert (int(index), label) == (int(np.argmax(probabilities[:10])), index)


def test_v2_statistics_count_requests_by_model(service: Application, digits: Pixels) -> None:
    def model_statistics(name: str) -> Any:
        (statistics,) = service.get(f"/v2/models/{name}/stats").json()["model_stats"]
        return statistics

    before = {name: model_statistics(name) for name in ("digits", "digits-mc")}
    service.post(INFER, request(to_input(digits, 3)))
    service.post(INFER, request(to_input(digits, 2)[:, :, :4]))
    service.post(INFER_MC, request(to_input(digits, 2)))
    after = {name: model_statistics(name) for name in before}
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


def test_v2_repository_index_lists_ready_models(service: Application) -> None:
    for body in (None, b"{}", b'{"ready": true}'):
        entries = service.post("/v2/repository/index", body).json()
        assert [(each["name"], each["state"]) for each in entries] == [
            ("digits", "READY"),
            ("digits-mc", "READY"),
        ]


def test_v2_infer_answers_504_when_the_timeout_parameter_expires(
    service: Application, digits: Pixels
) -> None:
    """A timeout of one microsecond expires before the inference run begins."""
    answer = service.post(INFER, request(to_input(digits, 1), parameters={"timeout": 1}))
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    without_timeout = service.post(INFER, request(to_input(digits, 1), parameters={"timeout": 0}))
    assert without_timeout.status_code == 200
