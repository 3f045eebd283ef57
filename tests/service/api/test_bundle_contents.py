"""The routes of what a bundle carries: example images and the report."""

from pathlib import Path
from urllib.parse import urljoin

import pytest

from model.bundle.store import REPORT_FILE, open_bundle
from service.api import schemas
from tests.bundles import copy_bundle, edit_manifest
from tests.service.serving import Application, check_error, predictions, serving_models


def test_examples_list_images_that_the_model_can_be_asked_about(service: Application) -> None:
    address = "/models/digits/examples"
    answer = schemas.Examples.model_validate_json(service.get(address).content)
    assert (answer.model, answer.version) == ("digits", "1")
    assert [each.number for each in answer.examples] == list(range(8))
    for each in answer.examples:
        assert each.label in set("0123456789")
    first = answer.examples[0]
    image = service.get(urljoin(address, first.href))
    assert image.headers["Content-Type"] == "image/webp"
    webp = {"Content-Type": "image/webp"}
    (prediction,) = predictions(service.post("/uncertainty", image.content, headers=webp))
    assert prediction["label"] == first.label  # the one that the model is surest of


def test_example_is_the_file_of_the_bundle(service: Application, bundle_folder: Path) -> None:
    response = service.get("/models/digits/examples/3?version=stable")
    assert response.content == (bundle_folder / "examples" / "3.webp").read_bytes()


@pytest.mark.parametrize("number", ["8", "-1", "+1", "01", "1.0", "x", "%2e%2e", "9" * 100])
def test_number_without_an_example_is_404(service: Application, number: str) -> None:
    check_error(
        service.get(f"/models/digits/examples/{number}"),
        *(404, "unknown_example"),
        "digits version 1 has no example …; GET /models/digits/examples lists them.",
    )


def test_unknown_model_and_version_are_404(service: Application) -> None:
    for path in ("examples", "examples/0", "report"):
        check_error(
            service.get(f"/models/nope/{path}"), 404, "unknown_model", "No model 'nope' is loaded…."
        )
        check_error(
            service.get(f"/models/digits/{path}?version=7"), 404, "unknown_version", "Version '7'…."
        )


def test_report_of_the_bundle_may_neither_run_nor_load_anything(
    service: Application, bundle_folder: Path
) -> None:
    response = service.get("/models/digits/report")
    assert response.content == (bundle_folder / REPORT_FILE).read_bytes()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    for headers in (response.headers, service.get("/models/digits/examples/0").headers):
        policy = headers["Content-Security-Policy"]
        assert {"sandbox", "default-src 'none'", "img-src data:"} < set(policy.split("; "))
        assert "script-src" not in policy


@pytest.mark.parametrize("path", ["report", "examples/2"])
def test_what_the_client_has_already_is_not_sent_again(service: Application, path: str) -> None:
    tag = service.get(f"/models/digits/{path}").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.get(f"/models/digits/{path}", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    other = service.get(f"/models/digits/{path}", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


def test_bundle_without_examples_and_report_serves_and_says_so(
    bundle_folder: Path, tmp_path: Path
) -> None:
    copy = copy_bundle(bundle_folder, tmp_path)
    files = open_bundle(copy).manifest.files
    kept = {name: digest for name, digest in files.items() if name != REPORT_FILE}
    edit_manifest(copy, files=kept, examples=[])
    with serving_models(tmp_path) as service:
        assert service.get("/models/digits/examples").json()["examples"] == []
        assert service.get("/models/digits/examples/0").status_code == 404
        check_error(
            service.get("/models/digits/report"),
            *(404, "no_report"),
            "digits version 1 has no report that can be shown; its model card is in "
            "GET /models/digits.",
        )


def test_report_that_was_changed_or_removed_is_not_shown(
    bundle_folder: Path, tmp_path: Path
) -> None:
    report = copy_bundle(bundle_folder, tmp_path) / REPORT_FILE
    with serving_models(tmp_path) as service:
        report.write_text("<script>alert(1)</script>")
        changed = service.get("/models/digits/report")
        report.unlink()
        removed = service.get("/models/digits/report")
        image = service.get("/models/digits/examples/0")
    for response in (changed, removed):
        check_error(response, 404, "no_report", "digits version 1 has no report…")
    assert image.status_code == 200
