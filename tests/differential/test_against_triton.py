"""Compares the service with a real Triton server: the same requests, responses of the same form.

`differences.py` lists every difference with its reason; a reason that is not needed fails, too.
DROPSERVE_TRITON_PYTHON names the python of an environment with nvidia-pytriton and onnxruntime.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.differential.cases import CASES, LENGTH_HEADER, REPOSITORY, Case
from tests.differential.differences import (
    EXPLANATIONS,
    Difference,
    Explanation,
    compare_documents,
    json_type,
)
from tests.differential.triton import Triton, triton_server
from tests.service.process import service_process
from tests.service.serving import TIMEOUT_SECONDS

# Read at import: a fixture deletes every DROPSERVE_ variable before the first test.
TRITON_PYTHON = os.environ.get("DROPSERVE_TRITON_PYTHON")

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not TRITON_PYTHON,
        reason="DROPSERVE_TRITON_PYTHON names no python with nvidia-pytriton and onnxruntime",
    ),
]

_BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Pair:
    """The responses of both servers to one case; None where Triton closed the connection."""

    triton: httpx.Response | None
    ours: httpx.Response


@pytest.fixture(scope="module")
def pairs(
    models_folder: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Pair]:
    """Send every case to both servers, in order."""
    folder = tmp_path_factory.mktemp("triton")
    with (
        triton_server(Path(str(TRITON_PYTHON)), bundle_folder, folder) as triton,
        service_process(models_folder, "--control", "anyone") as service,
        _client(triton.url) as their_client,
        _client(service.url) as our_client,
    ):
        return {
            case.name: Pair(_triton_response(triton, their_client, case), _send(our_client, case))
            for case in CASES
        }


@pytest.fixture(scope="module")
def found(pairs: Mapping[str, Pair]) -> Mapping[str, list[Difference]]:
    return {name: list(_differences(name, pair)) for name, pair in pairs.items()}


def test_cases_are_many_and_have_unique_names() -> None:
    names = [case.name for case in CASES]

    assert len(names) >= 150
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_response_matches_triton(name: str, found: Mapping[str, list[Difference]]) -> None:
    for difference in found[name]:
        explanations = [each.why for each in EXPLANATIONS if each.matches(difference)]
        assert len(explanations) == 1, f"{difference} has {explanations or 'no explanation'}"


@pytest.mark.parametrize("explanation", EXPLANATIONS, ids=lambda each: each.why)
def test_every_explanation_is_needed(
    explanation: Explanation, found: Mapping[str, list[Difference]]
) -> None:
    everything = [each for differences in found.values() for each in differences]

    assert any(map(explanation.matches, everything))


def test_every_error_has_a_sentence(pairs: Mapping[str, Pair]) -> None:
    for name, pair in pairs.items():
        if pair.ours.is_error:
            assert _error_type(pair.ours) == "a string", name
            assert pair.ours.headers["Content-Type"] == "application/json", name


def _client(url: str) -> httpx.Client:
    """Return a client that opens a connection for each request and requests no compression."""
    return httpx.Client(
        base_url=url,
        headers={"Accept-Encoding": "identity"},
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=TIMEOUT_SECONDS,
    )


def _send(client: httpx.Client, case: Case) -> httpx.Response:
    content = iter([case.body]) if case.chunked else case.body
    return client.request(case.method, case.path, content=content, headers=dict(case.headers))


def _triton_response(triton: Triton, client: httpx.Client, case: Case) -> httpx.Response | None:
    try:
        response = _send(client, case)
    except httpx.RemoteProtocolError:
        triton.restart_if_ended()
        return None
    if case.path.startswith(REPOSITORY):
        triton.wait_until_loaded()
    return response


def _differences(name: str, pair: Pair) -> Iterator[Difference]:
    """Yield the differences of two responses; bodies are compared if the status is the same."""
    triton, ours = pair.triton, pair.ours
    if triton is None or triton.status_code != ours.status_code:
        status = "hung up" if triton is None else str(triton.status_code)
        yield Difference(name, "status", status, str(ours.status_code))
    elif ours.is_error:
        if _error_type(triton) != _error_type(ours):
            yield Difference(name, "error", _error_type(triton), _error_type(ours))
    else:
        if triton.content and ours.content:
            yield from _compare_headers(name, triton.headers, ours.headers)
        yield from compare_documents(name, _decode_body(triton), _decode_body(ours))


def _compare_headers(name: str, triton: httpx.Headers, ours: httpx.Headers) -> Iterator[Difference]:
    for header in ("Content-Type", "Content-Encoding"):
        values = [each.get(header, "absent") for each in (triton, ours)]
        if values[0] != values[1]:
            yield Difference(name, header, values[0], values[1])


def _error_type(response: httpx.Response) -> str:
    try:
        return json_type(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return "no error in JSON"


def _decode_body(response: httpx.Response) -> Any:
    """Parse a body as JSON, with binary tensors as `data`; None for an empty body."""
    body, length = response.content, response.headers.get(LENGTH_HEADER)
    assert (length is None) == (response.headers.get("Content-Type") != _BINARY)
    if length is None:
        return json.loads(body) if body else None
    document = json.loads(body[: int(length)])
    _decode_outputs(document["outputs"], body[int(length) :])
    return document


def _decode_outputs(outputs: list[dict[str, Any]], binary: bytes) -> None:
    """Add `data` to each binary output; together they are all that follows the JSON."""
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            continue
        part, binary = binary[:size], binary[size:]
        assert len(part) == size
        is_fp32 = output["datatype"] == "FP32"
        output["data"] = np.frombuffer(part, "<f4").tolist() if is_fp32 else _decode_strings(part)
    assert not binary


def _decode_strings(part: bytes) -> list[str]:
    found = []
    while part:
        (length,) = struct.unpack_from("<I", part)
        found.append(part[4 : 4 + length].decode())
        part = part[4 + length :]
    return found
