"""requests and httpx against a running service, as the documents show them: `python FILE URL`."""

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

PATIENCE_SECONDS = 60
LENGTH_HEADER = "Inference-Header-Content-Length"

INFER: dict[str, Any] = {
    "inputs": [
        {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32", "data": NUMBERS.tolist()}
    ]
}


def outputs(answer: Any) -> dict[str, Any]:
    """Return the data of each output of an answer in JSON."""
    return {each["name"]: each["data"] for each in answer["outputs"]}


def binary_body(given: dict[str, Any], blob: bytes, **more: Any) -> tuple[bytes, int]:
    """Put an input's bytes behind its JSON; return both, and the length of the JSON."""
    described = {**given, "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"inputs": [described], **more}).encode()
    return header + blob, len(header)


def check_requests_json(url: str) -> None:
    response = requests.post(f"{url}/v2/models/digits/infer", json=INFER, timeout=PATIENCE_SECONDS)
    response.raise_for_status()
    assert response.headers["Content-Type"] == "application/json"
    answer = response.json()
    assert (answer["model_name"], answer["model_version"]) == ("digits", "1")
    assert outputs(answer)["label"] == LABELS
    assert [each["shape"] for each in answer["outputs"]] == [[4, 10], [4]]
    assert len(outputs(answer)["probabilities"]) == 40


def check_requests_flat_data(url: str) -> None:
    """Row by row, as the protocol's own examples have it."""
    flat = {**INFER["inputs"][0], "data": NUMBERS.ravel().tolist()}
    found, expected = (
        requests.post(f"{url}/v2/models/digits/infer", json=body, timeout=PATIENCE_SECONDS).json()
        for body in ({"inputs": [flat]}, INFER)
    )
    assert outputs(found) == outputs(expected)


def check_requests_one_output(url: str) -> None:
    body = {"id": "mine-1", **INFER, "outputs": [{"name": "label"}]}
    answer = requests.post(
        f"{url}/v2/models/digits/versions/1/infer", json=body, timeout=PATIENCE_SECONDS
    ).json()
    assert answer["id"] == "mine-1"
    assert outputs(answer) == {"label": LABELS}


def check_requests_image_files_in_json(url: str) -> None:
    texts = [base64.b64encode(each).decode() for each in png_files()]
    given: dict[str, Any] = {"name": "images", "shape": [4], "datatype": "BYTES", "data": texts}
    answer = requests.post(
        f"{url}/v2/models/digits/infer", json={"inputs": [given]}, timeout=PATIENCE_SECONDS
    ).json()
    assert outputs(answer)["label"] == LABELS


def check_requests_image_files_in_binary(url: str) -> None:
    blob = b"".join(struct.pack("<I", len(each)) + each for each in png_files())
    given = {"name": "images", "shape": [4], "datatype": "BYTES"}
    body, length = binary_body(given, blob)
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=PATIENCE_SECONDS,
    )
    assert LENGTH_HEADER not in response.headers, "nothing in binary was asked for"
    assert outputs(response.json())["label"] == LABELS


def check_requests_binary_there_and_back(url: str) -> None:
    given = {"name": "images", "shape": [4, 1, 8, 8], "datatype": "UINT8"}
    asked = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    body, length = binary_body(given, PIXELS.tobytes(), outputs=asked)
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=PATIENCE_SECONDS,
    )
    assert response.headers["Content-Type"] == "application/octet-stream"
    end = int(response.headers[LENGTH_HEADER])
    (described,) = json.loads(response.content[:end])["outputs"]
    assert described == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [4, 10],
        "parameters": {"binary_data_size": 160},
    }
    found = np.frombuffer(response.content[end:], "<f4").reshape(4, 10)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]


def check_requests_raw_body(url: str) -> None:
    """One image and no JSON at all: the header says 0."""
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=NUMBERS[0].tobytes(),
        headers={LENGTH_HEADER: "0"},
        timeout=PATIENCE_SECONDS,
    )
    assert response.status_code == 200, response.text
    end = int(response.headers[LENGTH_HEADER])
    described, _ = json.loads(response.content[:end])["outputs"]
    size = described["parameters"]["binary_data_size"]
    assert np.frombuffer(response.content[end : end + size], "<f4").argmax() == int(LABELS[0])


def check_requests_compressed(url: str) -> None:
    response = requests.post(
        f"{url}/v2/models/digits/infer",
        data=gzip.compress(json.dumps(INFER).encode()),
        headers={"Content-Encoding": "gzip", "Accept-Encoding": "deflate"},
        timeout=PATIENCE_SECONDS,
    )
    assert response.headers["Content-Encoding"] == "deflate"
    assert outputs(response.json())["label"] == LABELS


def check_requests_says_how_sure_the_answer_is(url: str) -> None:
    body = {**INFER, "parameters": {"samples": 64, "seed": 7}}
    first, again = (
        requests.post(f"{url}/v2/models/digits-mc/infer", json=body, timeout=PATIENCE_SECONDS)
        for _ in range(2)
    )
    assert first.content == again.content
    answer = first.json()
    assert answer["parameters"] == {"method": "mc_dropout", "samples": 64, "seed": 7}
    assert outputs(answer)["label"] == LABELS
    assert len(outputs(answer)["mutual_information"]) == 4


def check_requests_best_classes(url: str) -> None:
    asked = [{"name": "probabilities", "parameters": {"classification": 2}}]
    body: dict[str, Any] = {**INFER, "outputs": asked}
    answer = requests.post(
        f"{url}/v2/models/digits/infer", json=body, timeout=PATIENCE_SECONDS
    ).json()
    best = outputs(answer)["probabilities"]
    assert [each.split(":")[2] for each in best[::2]] == LABELS


def check_requests_rows_of_v1(url: str) -> None:
    instances = [{"b64": base64.b64encode(each).decode()} for each in png_files()]
    answer = requests.post(
        f"{url}/v1/models/digits:predict", json={"instances": instances}, timeout=PATIENCE_SECONDS
    ).json()
    assert [each["label"] for each in answer["predictions"]] == LABELS
    assert [len(each["probabilities"]) for each in answer["predictions"]] == [10] * 4


def check_requests_status_of_v1(url: str) -> None:
    answer = requests.get(f"{url}/v1/models/digits", timeout=PATIENCE_SECONDS).json()
    (status,) = answer["model_version_status"]
    assert (status["version"], status["state"]) == ("1", "AVAILABLE")


def check_requests_errors(url: str) -> None:
    for path, body, status, told in (
        ("/v2/models/nope/infer", INFER, 404, "No model 'nope' is loaded; there is digits."),
        ("/v2/models/digits/infer", {}, 400, "The request is not one of the Open Inference"),
        ("/v1/models/digits:predict", {"rows": []}, 400, "The body is not of the form"),
    ):
        response = requests.post(f"{url}{path}", json=body, timeout=PATIENCE_SECONDS)
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/json"
        assert response.json()["error"].startswith(told)


def check_httpx_json(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/digits/infer", json=INFER, timeout=PATIENCE_SECONDS)
    assert response.raise_for_status().headers["Content-Type"] == "application/json"
    assert outputs(response.json())["label"] == LABELS


def check_httpx_binary_there_and_back(url: str) -> None:
    given = {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32"}
    default = {"binary_data_output": True}
    body, length = binary_body(given, NUMBERS.tobytes(), parameters=default)
    response = httpx.post(
        f"{url}/v2/models/digits/infer",
        content=body,
        headers={LENGTH_HEADER: str(length)},
        timeout=PATIENCE_SECONDS,
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
    """Ask what there is, then use it."""
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        index = client.post("/v2/repository/index", json={"ready": True}).json()
        for name in (each["name"] for each in index):
            (described,) = client.get(f"/v2/models/{name}").json()["inputs"]
            given = {
                "name": described["name"],
                "shape": [4, *described["shape"][1:]],
                "datatype": described["datatype"],
                "data": NUMBERS.tolist(),
            }
            answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [given]}).json()
            assert outputs(answer)["label"] == LABELS


def check_httpx_asynchronous(url: str) -> None:
    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
            paths = [f"/v2/models/{name}/infer" for name in ("digits", "digits-mc")]
            return await asyncio.gather(*(client.post(path, json=INFER) for path in paths))

    for response in asyncio.run(both()):
        assert outputs(response.raise_for_status().json())["label"] == LABELS


def check_httpx_rows_of_v1(url: str) -> None:
    body = {"instances": NUMBERS[:, 0].tolist()}
    response = httpx.post(f"{url}/v1/models/digits:predict", json=body, timeout=PATIENCE_SECONDS)
    predictions = response.raise_for_status().json()["predictions"]
    assert [each["label"] for each in predictions] == LABELS


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
