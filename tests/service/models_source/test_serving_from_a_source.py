"""The service with bundles that an HTTP server has: the first start, new versions, no network."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.check.findings import Finding, Level
from service.check.models_source_check import check_models_source
from service.models_source import source_polling
from service.models_source.bundle_cache import BundleCache
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, update_digest
from tests.pictures import Pixels, encode
from tests.service.models_source.file_server import serving_files
from tests.service.serving import (
    PNG,
    TIMEOUT_SECONDS,
    Application,
    WatchedRepository,
    check_sentence,
    serving,
    serving_models,
)

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


def wait_until_fetched(application: Application, source: str, versions: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while application.metric(FETCHED, source=source) < versions:
        assert time.monotonic() < deadline


def test_what_another_process_has_fetched_is_served_though_that_one_is_not_done(
    bundle_folder: Path, tmp_path: Path, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_polling, "_QUIET_SECONDS", 0.0)
    url = "http://127.0.0.1:1"
    settings = ServiceSettings(models_folder=tmp_path / "models", **options(tmp_path, url))
    with (
        BundleCache(tmp_path / "cache", url).locked(),
        serving(create_app(settings, WatchedRepository(settings))) as application,
    ):
        sentence = ready(application, 503).json()["error"]
        assert sentence == f"The models are being fetched from {url}; try again in a few seconds."
        copy_bundle(bundle_folder, tmp_path / "draft")
        (tmp_path / "draft" / "digits").rename(tmp_path / "cache" / "digits")
        ready(application, 200)
        assert answering_version(application, digit) == "1"


@pytest.mark.parametrize(
    ("setting", "name", "rollouts"),
    [
        ("control_folder", "releases.json", '{"models": {"digits": {"held": 1}}}'),
        ("rollouts", "rollouts.json", '{"models": {"digits": {"version": 1}}}'),
    ],
)
def test_version_that_damaged_rollouts_name_stays_and_serves_once_they_are_mended(
    bundle_folder: Path,
    site: Path,
    tmp_path: Path,
    digit: Pixels,
    setting: str,
    name: str,
    rollouts: str,
) -> None:
    file = tmp_path / "state" / name
    file.parent.mkdir()
    file.write_text(rollouts)
    models = tmp_path / "models"
    publish(bundle_folder, site, 2)
    with serving_files(site) as server:
        given = options(tmp_path, server.url)
        given[setting] = file.parent if setting == "control_folder" else file
        with serving_models(models, **given) as application:
            ready(application, 200)
        shutil.rmtree(site / "digits" / "1")
        file.write_text(rollouts[:-1])
        with serving_models(models, **given) as application:
            publish(bundle_folder, site, 3)
            wait_until_fetched(application, server.url, 1)
            file.write_text(rollouts)
            ready(application, 200)
            assert answering_version(application, digit) == "1"


def test_version_that_serves_stays_however_many_newer_ones_cannot_be_loaded(
    bundle_folder: Path, site: Path, tmp_path: Path, digit: Pixels
) -> None:
    broken = copy_bundle(bundle_folder, tmp_path / "broken")
    (broken / "golden.npz").write_bytes(b"")
    update_digest(broken, "golden.npz")
    with serving_files(site) as server:
        given = options(tmp_path, server.url) | {"models_source_versions": 1}
        with serving_models(tmp_path / "models", **given) as application:
            ready(application, 200)
            for version in (2, 3, 4):
                publish(broken, site, version)
                wait_until_fetched(application, server.url, version)
    with serving_models(tmp_path / "models", **given) as application:
        ready(application, 200)
        assert answering_version(application, digit) == "1"


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


def finding(tmp_path: Path, url: str, **more: Any) -> Finding:
    given = options(tmp_path, url) | more
    settings = ServiceSettings(models_folder=tmp_path / "models", **given)
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


@pytest.mark.parametrize("models", [{}, {"letters": [1]}])
def test_check_warns_where_the_cache_has_what_the_source_has_lost(
    bundle_folder: Path, site: Path, tmp_path: Path, models: dict[str, list[int]]
) -> None:
    (site / "index.json").write_text(json.dumps({"models": models}))
    with serving_files(site) as server:
        with BundleCache(tmp_path / "cache", server.url).locked():
            copy_bundle(bundle_folder, tmp_path / "cache")
        found = finding(tmp_path, server.url)
        assert found.level == Level.WARNING
        check_sentence(
            found.sentence,
            f"{server.url} has no version of digits that is wanted; publish one there as "
            "NAME/VERSION/. What was fetched into … serves meanwhile.",
        )
        assert finding(tmp_path, server.url, models="digits@2").level == Level.ERROR


def test_check_refuses_a_folder_that_is_no_cache(bundle_folder: Path, tmp_path: Path) -> None:
    copy_bundle(bundle_folder, tmp_path / "cache")
    found = finding(tmp_path, "http://127.0.0.1:1")
    assert found.level == Level.ERROR
    check_sentence(found.sentence, "--models-cache: … holds bundles that were not fetched; name …")
