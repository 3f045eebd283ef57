"""The service with bundles that an HTTP server has: the first start, new versions, no network."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.check.findings import Finding, Level
from service.check.models_source_check import check_models_source
from service.settings import ServiceSettings
from tests.bundles import copy_bundle
from tests.pictures import Pixels, encode
from tests.service.models_source.file_server import serving_files
from tests.service.serving import PNG, TIMEOUT_SECONDS, Application, check_sentence, serving_models

SUCCESS = "dropserve_models_source_last_success_timestamp_seconds"
FAILURES = "dropserve_models_source_failures_total"
FETCHED = "dropserve_models_source_fetched_versions_total"


@pytest.fixture
def site(bundle_folder: Path, tmp_path: Path) -> Path:
    """The folder of a site with version 1 of a model."""
    folder = tmp_path / "site"
    publish(bundle_folder, folder, 1)
    return folder


def publish(bundle: Path, site: Path, version: int) -> None:
    """Publish a version; its number comes into the index last."""
    copy_bundle(bundle, site, "digits", version)
    versions = sorted(int(each.name) for each in (site / "digits").iterdir())
    (site / "index.json").write_text(json.dumps({"models": {"digits": versions}}))


def options(tmp_path: Path, url: str) -> dict[str, Any]:
    return {
        "models_source": url,
        "models_cache": tmp_path / "cache",
        "models_source_seconds": 1,
        "watch_seconds": 0.05,
    }


def ready(application: Application, status: int, text: str = "") -> httpx.Response:
    """Ask whether the service is ready until the answer has this status and text."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        response = application.get("/health/ready")
        if response.status_code == status and text in response.text:
            return response
    raise AssertionError(response.text)


def answering_version(application: Application, digit: Pixels) -> str:
    response = application.post("/predict", encode(digit), headers=PNG)
    assert response.status_code == 200, response.text
    return str(response.json()["version"])


def wait_for_version(application: Application, digit: Pixels, version: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while answering_version(application, digit) != version:
        assert time.monotonic() < deadline


def test_versions_are_fetched_followed_and_served_on_without_a_network(
    bundle_folder: Path, site: Path, tmp_path: Path, digit: Pixels
) -> None:
    models = tmp_path / "models"
    with serving_files(site) as server:
        place = server.url
        url = place.replace("//", "//user:secret@")
        with serving_models(models, **options(tmp_path, url)) as application:
            ready(application, 200)
            assert answering_version(application, digit) == "1"
            publish(bundle_folder, site, 2)
            wait_for_version(application, digit, "2")
            assert application.metric(FETCHED, source=place) == 2
            assert time.time() - application.metric(SUCCESS, source=place) < TIMEOUT_SECONDS
        assert set(server.authorizations) == {"Basic dXNlcjpzZWNyZXQ="}
    with serving_models(models, **options(tmp_path, url)) as application:  # the server is gone
        ready(application, 200)
        assert answering_version(application, digit) == "2"
    assert not models.exists()


@pytest.mark.source
def test_service_without_network_and_cache_says_why_and_goes_on_trying(
    site: Path, tmp_path: Path, digit: Pixels
) -> None:
    with serving_files(site) as server:
        (site / "index.json").rename(site / "hidden.json")
        url = server.url
        with serving_models(tmp_path / "models", **options(tmp_path, url)) as application:
            sentence = ready(application, 503, "index.json").json()["error"]
            check_sentence(
                sentence,
                "No version could be fetched yet; that is tried again. "
                f"{url}/index.json: it is not there.",
            )
            assert application.metric(FAILURES, source=url) >= 1
            (site / "index.json").write_text('{"models": {}}')
            ready(application, 503, "has no version that is wanted; publish one there")
            (site / "index.json").write_text('{"models": {"../digits": [1]}}')
            ready(application, 503, "is no index")
            (site / "hidden.json").rename(site / "index.json")
            ready(application, 200)
            assert answering_version(application, digit) == "1"


def finding(tmp_path: Path, url: str) -> Finding:
    settings = ServiceSettings(models_folder=tmp_path / "models", **options(tmp_path, url))
    (found,) = check_models_source(settings)
    return found


def test_check_examines_the_source_and_fetches_nothing(site: Path, tmp_path: Path) -> None:
    with serving_files(site) as server:
        url = server.url
        found = finding(tmp_path, url)
        assert found.level == Level.FINE
        check_sentence(
            found.sentence, f"{url} has, …, digits 1; it would fetch digits version 1, …"
        )
        assert not (tmp_path / "cache").exists()
        (site / "index.json").write_text('{"models": {}}')
        found = finding(tmp_path, url)
        assert found.level == Level.ERROR
        check_sentence(found.sentence, f"{url} has no version of any model; publish one there as …")
    found = finding(tmp_path, url)
    assert found.level == Level.ERROR
    check_sentence(found.sentence, f"{url}/index.json: it cannot be read (…). Nothing was …")


def test_check_refuses_a_folder_that_is_no_cache(bundle_folder: Path, tmp_path: Path) -> None:
    copy_bundle(bundle_folder, tmp_path / "cache")
    found = finding(tmp_path, "http://127.0.0.1:1")
    assert found.level == Level.ERROR
    check_sentence(found.sentence, "--models-cache: … holds bundles that were not fetched; name …")
