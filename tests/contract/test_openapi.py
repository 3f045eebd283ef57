"""The service behaves as /openapi.json describes; schemathesis generates requests for two minutes.

schemathesis runs in an environment of its own, since its requirements are not the project's.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.process import ServiceProcess, service_process

FOLDER = Path(__file__).parent
VARIABLE = "DROPSERVE_CONTRACT_PYTHON"
# Read at import: a fixture deletes every DROPSERVE_ variable before the first test.
PYTHON = os.environ.get(VARIABLE, "")
SECONDS = 120
TIMEOUT_SECONDS = SECONDS + 90
SEED = 1

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(
        not PYTHON,
        reason=f"{VARIABLE} names no Python with tests/contract/requirements.txt installed",
    ),
]


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    """Start the service without control routes, so that no request unloads the model."""
    with service_process(models_folder, "--control", "nobody") as process:
        yield process


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def test_openapi_document_is_valid(service: ServiceProcess, tmp_path: Path) -> None:
    with service.client() as client:
        (tmp_path / "openapi.json").write_bytes(client.get("/openapi.json").content)
    done = run(tmp_path, PYTHON, "-m", "openapi_spec_validator", "openapi.json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_service_passes_all_checks_of_schemathesis(service: ServiceProcess, tmp_path: Path) -> None:
    schemathesis = str(Path(PYTHON).with_name("schemathesis"))
    config = str(FOLDER / "schemathesis.toml")
    address = f"{service.url}/openapi.json"
    limits = ["--max-time", str(SECONDS), "--seed", str(SEED), "--request-timeout", "30"]
    options = ["--checks", "all", "--continue-on-failure", "--no-color"]
    done = run(tmp_path, schemathesis, "--config-file", config, "run", address, *options, *limits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.logged("request failed") == []
    with httpx.Client(base_url=service.url) as client:
        assert client.get("/health/ready").status_code == 200
