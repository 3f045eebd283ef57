"""requests and httpx against a running service, as in the documentation: `python FILE URL`."""

import asyncio
import base64
import gzip
import json
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import numpy as np
import requests

from tests.clients.checks import LABELS, NUMBERS, PIXELS, png_files, run_checks

TIMEOUT_SECONDS = 60
LENGTH_HEADER = "Inference-Header-Content-Length"

INFER: dict[str, Any] = {
    "inputs": [
        {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32", "data": NUMBERS.tolist()}
    ]
}


def outputs(content: Any) -> dict[str, Any]:
    """Return the data of each output of a JSON response."""
    return {each["name"]: each["data"] for each in content["outputs"]}


def binary_body(tensor: dict[str, Any], data: bytes, **more: Any) -> tuple[bytes, int]:
    """Return a body of JSON followed by an input's bytes, and the length of the JSON."""
    metadata = {**tensor, "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [metadata], **more}).encode()
    return header + data, len(header)


def check_requests_json(url: str) -> None:
    response = requests.post(f"{url}/v2/models/digits/infer", json=INFER, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
    assert response.headers["Content-Type"] == "application/json"
    content = response.json()
    assert (content["model_name"], content["model_version"]) == ("digits", "1")
    assert outputs(content)["label"] == LABELS
    assert [each["shape"] for each in content["outputs"]] == [[4, 10], [4]]
    assert len(outputs(content)["probabilities"]) == 40


def check_requests_flat_data(url: str) -> None:
    """Data may be flat, in row-major order, as in the protocol's examples."""
    flat = {**INFER["inputs"][0], "data": NUMBERS.ravel().tolist()}
    found, expected = (
        requests.post(f"{url}/v2/models/digits/infer", json=body, timeout=TIMEOUT_SECONDS).json()
        for body in ({"inputs": [flat]}, INFER)
    )
    assert outputs(found) == outputs(expected)


def check_requests_one_output(url: str) -> None:
    body = {"id": "mine-1", **INFER, "outputs": [{"name": "label"}]}
    response = requests.post(
        f"{url}/v2/models/digits/versions/1/infer", json=body, timeout=TIMEOUT_SECONDS
    ).json()
    assert response["id"] == "mine-1"
    assert outputs(response) == {"label": LABELS}


def check_requests_image_files_in_json(url: str) -> None:
    texts = [base64.b64encode(each).decode() for each in png_files()]
    tensor: dict[str, Any] = {"name": "images", "shape": [4], "datatype": "BYTES", "data": texts}
    response = requests.post(
        f"{url}/v2/models/digits/infer", json={"inputs": [tensor]}, timeout=TIMEOUT_SECONDS
    ).json()
    assert outputs(response)["label"] == LABELS


def check_requests_image_files_in_binary(url: str) -> None:
    blob = b"".join(struct.pack("<I", len(each)) + each for each in png_files())
    tensor = {"name": "images", "shape": [4], "datatype": "BYTES"}
    body, length = binary_body(tensor, blob)
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=TIMEOUT_SECONDS,
    )
    assert LENGTH_HEADER not in response.headers, "no binary output was requested"
    assert outputs(response.json())["label"] == LABELS


def check_requests_binary_input_and_output(url: str) -> None:
    tensor = {"name": "images", "shape": [4, 1, 8, 8], "datatype": "UINT8"}
    requested = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    body, length = binary_body(tensor, PIXELS.tobytes(), outputs=requested)
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=TIMEOUT_SECONDS,
    )
    assert response.headers["Content-Type"] == "application/octet-stream"
    end = int(response.headers[LENGTH_HEADER])
    (metadata,) = json.loads(response.content[:end])["outputs"]
    assert metadata == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [4, 10],
        "parameters": {"binary_data_size": 160},
    }
    found = np.frombuffer(response.content[end:], "<f4").reshape(4, 10)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]


def check_requests_raw_body(url: str) -> None:
    """A raw tensor without JSON is announced by a header length of 0."""
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=NUMBERS[0].tobytes(),
        headers={LENGTH_HEADER: "0"},
        timeout=TIMEOUT_SECONDS,
    )
    assert response.status_code == 200, response.text
    end = int(response.headers[LENGTH_HEADER])
    metadata, _ = json.loads(response.content[:end])["outputs"]
    size = metadata["parameters"]["binary_data_size"]
    assert np.frombuffer(response.content[end : end + size], "<f4").argmax() == int(LABELS[0])


def check_requests_compressed(url: str) -> None:
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=gzip.compress(json.dumps(INFER).encode()),
        headers={"Content-Encoding": "gzip", "Accept-Encoding": "deflate"},
        timeout=TIMEOUT_SECONDS,
    )
    assert response.headers["Content-Encoding"] == "deflate"
    assert outputs(response.json())["label"] == LABELS


def check_requests_uncertainty(url: str) -> None:
    body = {**INFER, "parameters": {"samples": 64, "seed": 7}}
    first, again = (
        requests.post(f"{url}/v2/models/digits-mc/infer", json=body, timeout=TIMEOUT_SECONDS)
        for _ in range(2)
    )
    assert first.content == again.content
    content = first.json()
    assert 0 < content["parameters"].pop("max_risk") < 1
    used = {"method": "mc_dropout", "samples": 64, "seed": 7, "max_false_alarm": 0.01}
    assert content["parameters"] == used
    assert outputs(content)["label"] == LABELS
    assert len(outputs(content)["mutual_information"]) == 4


def check_requests_classification(url: str) -> None:
    requested = [{"name": "probabilities", "parameters": {"classification": 2}}]
    body: dict[str, Any] = {**INFER, "outputs": requested}
    response = requests.post(
        f"{url}/v2/models/digits/infer", json=body, timeout=TIMEOUT_SECONDS
    ).json()
    best = outputs(response)["probabilities"]
    assert [each.split(":")[2] for each in best[::2]] == LABELS


def check_requests_predict_of_v1(url: str) -> None:
    instances = [{"b64": base64.b64encode(each).decode()} for each in png_files()]
    response = requests.post(
        f"{url}/v1/models/digits:predict", json={"instances": instances}, timeout=TIMEOUT_SECONDS
    ).json()
    assert [each["label"] for each in response["predictions"]] == LABELS
    assert [len(each["probabilities"]) for each in response["predictions"]] == [10] * 4


def check_requests_status_of_v1(url: str) -> None:
    response = requests.get(f"{url}/v1/models/digits", timeout=TIMEOUT_SECONDS).json()
    (status,) = response["model_version_status"]
    assert (status["version"], status["state"]) == ("1", "AVAILABLE")


def check_requests_errors(url: str) -> None:
    for path, body, status, sentence in (
        ("/v2/models/nope/infer", INFER, 404, "No model 'nope' is loaded; there is digits."),
        ("/v2/models/digits/infer", {}, 400, "The request is not one of the Open Inference"),
        ("/v1/models/digits:predict", {"rows": []}, 400, "The body is not of the form"),
    ):
        response = requests.post(f"{url}{path}", json=body, timeout=TIMEOUT_SECONDS)
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/json"
        assert response.json()["error"].startswith(sentence)


def check_httpx_json(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/digits/infer", json=INFER, timeout=TIMEOUT_SECONDS)
    assert response.raise_for_status().headers["Content-Type"] == "application/json"
    assert outputs(response.json())["label"] == LABELS


def check_httpx_binary_input_and_output(url: str) -> None:
    tensor = {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32"}
    default = {"binary_data_output": True}
    body, length = binary_body(tensor, NUMBERS.tobytes(), parameters=default)
    response = httpx.post(
        f"{url}/v2/models/digits/infer",
        content=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=TIMEOUT_SECONDS,
    )
    end = int(response.raise_for_status().headers[LENGTH_HEADER])
    probabilities, label = json.loads(response.content[:end])["outputs"]
    size = probabilities["parameters"]["binary_data_size"]
    found = np.frombuffer(response.content[end : end + size], "<f4").reshape(4, 10)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]
    texts = response.content[end + size :]
    assert texts == b"".join(struct.pack("<I", 1) + each.encode() for each in LABELS)
    assert label["parameters"]["binary_data_size"] == len(texts)


def check_httpx_on_one_connection(url: str) -> None:
    """List the models, then use each of them."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        index = client.post("/v2/repository/index", json={"ready": True}).json()
        for name in (each["name"] for each in index):
            (metadata,) = client.get(f"/v2/models/{name}").json()["inputs"]
            tensor = {
                "name": metadata["name"],
                "shape": [4, *metadata["shape"][1:]],
                "datatype": metadata["datatype"],
                "data": NUMBERS.tolist(),
            }
            response = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()
            assert outputs(response)["label"] == LABELS


def check_httpx_asynchronous(url: str) -> None:
    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            paths = [f"/v2/models/{name}/infer" for name in ("digits", "digits-mc")]
            return await asyncio.gather(*(client.post(path, json=INFER) for path in paths))

    for response in asyncio.run(both()):
        assert outputs(response.raise_for_status().json())["label"] == LABELS


def check_httpx_predict_of_v1(url: str) -> None:
    body = {"instances": NUMBERS[:, 0].tolist()}
    response = httpx.post(f"{url}/v1/models/digits:predict", json=body, timeout=TIMEOUT_SECONDS)
    predictions = response.raise_for_status().json()["predictions"]
    assert [each["label"] for each in predictions] == LABELS


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
