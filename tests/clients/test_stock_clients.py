"""Published clients, unmodified, against the running service.

They run in an environment of their own, since their requirements are not the project's.
"""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.keys.key_file_changes import add_key
from tests.certificates import Authority
from tests.conftest import ROOT
from tests.service.process import ServiceProcess, service_process
from training.data.dataset import Split

FOLDER = Path(__file__).parent
VARIABLE = "DROPSERVE_CLIENTS_PYTHON"
# Read at import: a fixture deletes every DROPSERVE_ variable before the first test.
PYTHON = os.environ.get(VARIABLE, "")
TIMEOUT_SECONDS = 120
LINES = 24

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        not PYTHON,
        reason=f"{VARIABLE} names no Python with tests/clients/requirements.txt installed",
    ),
]

CHECKS = {
    "with_tritonclient.py": 54,
    "with_tritonclient_aio.py": 12,
    "with_kserve.py": 15,
    "with_requests.py": 18,
}


WITH_KEYS, KEY_CHECKS = "with_keys.py", 7
WITH_TLS, TLS_CHECKS = "with_tls.py", 7
NO_KEY = "ds-00000000-" + "A" * 43


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder, "--control", "anyone") as process:
        yield process


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Parse the output of a script: one line for each of its checks."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found, done.stderr
    return found


def test_installed_clients_have_the_pinned_versions() -> None:
    pins = [
        line.split("==")
        for line in (FOLDER / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    names = [name.partition("[")[0] for name, _ in pins]
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    assert run(PYTHON, "-c", code, *names).stdout.split() == [version for _, version in pins]


@pytest.mark.parametrize("script", CHECKS)
def test_client_passes_every_check(script: str, service: ServiceProcess) -> None:
    done = run(PYTHON, str(FOLDER / script), service.url)
    found = outcomes(done)
    assert {each["check"]: each["error"] for each in found if not each["ok"]} == {}
    assert len(found) == CHECKS[script]
    assert done.returncode == 0, done.stderr
    assert service.logged("request failed") == []


def test_clients_pass_every_check_with_a_key(models_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "client", frozenset({"predict", "read"}), None)
    options = ["--control", "anyone", "--api-keys-file", str(file)]
    with service_process(models_folder, *options) as process:
        done = run(PYTHON, str(FOLDER / WITH_KEYS), process.url, key)
    found = outcomes(done)
    assert {each["check"]: each["error"] for each in found if not each["ok"]} == {}
    assert len(found) == KEY_CHECKS
    assert done.returncode == 0, done.stderr


def test_clients_pass_every_check_by_https_while_the_certificate_is_replaced(
    models_folder: Path, tmp_path: Path
) -> None:
    authority, clients = Authority(), Authority()
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    options = authority.issue(tmp_path / "server").options
    options += ["--tls-client-ca", str(clients.write(tmp_path / "client"))]
    own = clients.issue(tmp_path / "client")
    own.key.write_bytes(own.key.read_bytes() + own.certificate.read_bytes())
    ca = authority.write(tmp_path / "server")
    with service_process(models_folder, *options, workers=2) as process:
        for count in (2, 4):  # each worker reads them at its start, and when they change
            process.wait_for("certificate read", count)
            done = run(PYTHON, str(FOLDER / WITH_TLS), process.url, str(ca), str(own.key))
            found = outcomes(done)
            assert {each["check"]: each["error"] for each in found if not each["ok"]} == {}
            assert len(found) == TLS_CHECKS
            assert done.returncode == 0, done.stderr
            authority.issue(tmp_path / "server")
        process.send(signal.SIGTERM)
        assert process.exit_status() == 0


@pytest.mark.parametrize("script", [*CHECKS, WITH_KEYS])
def test_every_check_fails_where_nothing_listens(script: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = run(PYTHON, str(FOLDER / script), url, NO_KEY)
    assert [each["check"] for each in outcomes(done) if each["ok"]] == []
    assert len(outcomes(done)) == (CHECKS | {WITH_KEYS: KEY_CHECKS})[script]
    assert done.returncode == 1


def examples() -> list[str]:
    """Return each Python block of docs/open-inference.md."""
    text = (ROOT / "docs" / "open-inference.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("code", examples(), ids=lambda code: code.split("\n")[0])
def test_example_in_the_documentation_runs(code: str, service: ServiceProcess) -> None:
    assert "localhost:8000" in code
    done = run(PYTHON, "-c", code.replace("localhost:8000", f"127.0.0.1:{service.port}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def infer_requests(held_out: Split) -> list[dict[str, Any]]:
    return [
        {
            "id": f"line-{index}",
            "inputs": [
                {
                    "name": "images",
                    "shape": [1, 1, 8, 8],
                    "datatype": "FP32",
                    "data": (image.astype(np.float32) / 255).ravel().tolist(),
                }
            ],
        }
        for index, image in enumerate(held_out.images[:LINES])
    ]


@pytest.mark.parametrize("options", [[], ["--batch-size", "5"], ["--binary-data"]])
def test_mlserver_infer_answers_every_line(
    options: list[str], service: ServiceProcess, held_out: Split, tmp_path: Path
) -> None:
    """`mlserver infer`, on a file of requests, agrees with httpx."""
    requests = infer_requests(held_out)
    input_file, output_file = tmp_path / "input.jsonl", tmp_path / "output.jsonl"
    input_file.write_text("".join(json.dumps(each) + "\n" for each in requests))
    mlserver = str(Path(PYTHON).with_name("mlserver"))
    address = service.url.removeprefix("http://")
    paths = ["-i", str(input_file), "-o", str(output_file)]
    done = run(mlserver, "infer", "-u", address, "-m", "digits", *paths, *options)
    assert done.returncode == 0, done.stderr
    assert "exception" not in done.stdout + done.stderr, "a request was sent more than once"

    responses = [json.loads(line) for line in output_file.read_text().splitlines()]
    assert [each for each in responses if "error" in each] == []
    by_id = {each["id"]: each for each in responses}
    assert len(responses) == len(by_id) == LINES
    with httpx.Client(base_url=service.url, timeout=TIMEOUT_SECONDS) as client:
        for request in requests:
            expected = client.post("/v2/models/digits/infer", json=request).json()
            response = by_id[request["id"]]
            assert response["model_name"] == "digits"
            assert data(response, "label") == data(expected, "label")
            assert data(response, "probabilities") == pytest.approx(
                data(expected, "probabilities"), abs=1e-6
            )


def data(response: dict[str, Any], name: str) -> list[Any]:
    (found,) = (output["data"] for output in response["outputs"] if output["name"] == name)
    assert isinstance(found, list)
    return found
