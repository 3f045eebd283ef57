"""The objects for KServe fit the models of its published SDK."""

import copy
import json
import subprocess
from typing import Any

import pytest

from tests.clients.test_stock_clients import FOLDER, PYTHON, TIMEOUT_SECONDS, VARIABLE
from tests.conftest import ROOT
from tests.kubernetes.rendering import Manifest, rendered

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not PYTHON, reason=f"{VARIABLE} names no Python with the clients"),
]


def problems(manifests: list[Manifest]) -> Any:
    done = subprocess.run(
        [PYTHON, str(FOLDER / "kserve_models.py")],
        input=json.dumps(manifests),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_objects_have_the_fields_of_the_models() -> None:
    manifests = rendered("kserve")
    assert len(manifests) == 3
    assert problems(manifests) == []


def test_misspelled_field_and_wrong_type_are_found() -> None:
    (found,) = [each for each in rendered("kserve") if each["kind"] == "ServingRuntime"]
    runtime = copy.deepcopy(found)
    runtime["spec"]["multimodel"] = False
    runtime["spec"]["protocolVersions"] = [2]
    del runtime["spec"]["containers"][0]["name"]
    said = problems([runtime])
    assert "dropserve.spec.multimodel is unknown" in said
    assert "dropserve.spec.protocolVersions[0] is no str" in said
    assert any(each.startswith("dropserve.spec.containers[0]: ") for each in said)
