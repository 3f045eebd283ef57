"""The service with bundles in a bucket of moto's S3 server: make source-test."""

import time
from pathlib import Path

import httpx
import pytest

from service.check.findings import Level
from service.check.models_source_check import check_models_source
from service.settings import ServiceSettings
from tests.bundles import copy_bundle
from tests.pictures import Pixels, encode
from tests.service.models_source.s3_server import BUCKET, running_s3_server
from tests.service.process import ServiceProcess, service_process
from tests.service.serving import PNG, TIMEOUT_SECONDS, check_sentence, metric

pytestmark = pytest.mark.source

SOURCE = f"s3://{BUCKET}/team/models"
FETCHED = "dropserve_models_source_fetched_versions_total"


def options(tmp_path: Path) -> list[str]:
    folders = ["--models-cache", str(tmp_path / "cache")]
    return ["--models-source", SOURCE, *folders, "--models-source-seconds", "1"]


def wait_for_version(service: ServiceProcess, digit: Pixels, version: str) -> None:
    """Wait until all workers are likely to answer by a version: ten answers in a row."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    in_a_row = 0
    while in_a_row < 10:
        response = service.post("/predict", encode(digit), PNG["Content-Type"])
        assert response.status_code == 200, response.text
        in_a_row = in_a_row + 1 if str(response.json()["version"]) == version else 0
        assert time.monotonic() < deadline, response.text


def fetched(service: ServiceProcess) -> float:
    return metric(httpx.get(f"{service.url}/metrics").text, FETCHED, source=SOURCE)


def test_workers_of_two_services_fetch_each_version_once_and_serve_on_when_s3_is_gone(
    bundle_folder: Path, tmp_path: Path, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = {
        version: copy_bundle(bundle_folder, tmp_path / "elsewhere", "digits", version)
        for version in (1, 2, 3)
    }
    with running_s3_server() as s3:
        for name, value in s3.variables.items():
            monkeypatch.setenv(name, value)
        s3.put(bundles[1], "team/models/digits/1")
        models = tmp_path / "models"
        with (
            service_process(models, *options(tmp_path), workers=2) as first,
            service_process(models, *options(tmp_path)) as second,
        ):
            s3.put(bundles[2], "team/models/digits/2")
            for service in (first, second):
                wait_for_version(service, digit, "2")
            assert fetched(first) + fetched(second) == 2
            s3.put(bundles[3], "team/models/digits/3")
            for service in (first, second):
                wait_for_version(service, digit, "3")
            s3.remove("team/models/digits/3")
            for service in (first, second):
                wait_for_version(service, digit, "2")
            for service in (first, second):
                assert all(
                    "secret-key" not in str(line) for line in service.logged("models source")
                )
    with service_process(models, *options(tmp_path)) as service:  # S3 is gone
        wait_for_version(service, digit, "2")


def test_check_says_why_a_bucket_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3_server() as s3:
        for name, value in s3.variables.items():
            monkeypatch.setenv(name, value)
        source = "s3://no-such-bucket/models"
        settings = ServiceSettings(models_source=source, models_folder=tmp_path / "models")
        (finding,) = check_models_source(settings)
    assert finding.level == Level.ERROR
    check_sentence(finding.sentence, f"{source}: … Nothing was fetched before, so …")
