"""The page Models, in a browser, over real bundles; a few answers of the service are replaced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from model.bundle.store import MANIFEST_FILE
from tests.browser.accessibility import assert_accessible
from tests.browser.conftest import OpenContext
from tests.browser.layout import assert_fits
from tests.bundles import copy_bundle, edit_manifest
from tests.service.process import ServiceProcess, service_process

pytestmark = pytest.mark.browser

RECOVERY_MILLISECONDS = 10_000
"""The page asks every 5 seconds."""
REASON = "digits/3/model.onnx differs from its SHA-256; copy the bundle again."
FEW_METRICS = {"test": {"accuracy": 0.93, "images": 120}}


@pytest.fixture(scope="module")
def rollout(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a pinned version, a canary, a refused one, and a bare model."""
    models = tmp_path_factory.mktemp("rollout")
    copy_bundle(bundle_folder, models)
    weaker = copy_bundle(bundle_folder, models, version=2)
    metrics = orjson.loads((weaker / MANIFEST_FILE).read_bytes())["metrics"]
    metrics["test"]["accuracy"] -= 0.1
    metrics["diagnosis"]["layers"][0]["dead"] = 3
    edit_manifest(weaker, metrics=metrics)
    (copy_bundle(bundle_folder, models, version=3) / "model.onnx").write_bytes(b"damaged")
    bare = copy_bundle(bundle_folder, models, "elsewhere")
    edit_manifest(bare, metrics=FEW_METRICS, examples=[], published=None)
    options = ("--control", "anyone", "--default-model", "digits")
    with service_process(models, *options) as process, process.client() as client:
        client.post("/models/digits/pin?version=1").raise_for_status()
        client.post("/models/digits/canary?version=2&share=0.25").raise_for_status()
        yield process.url


@pytest.fixture
def rollout_page(open_context: OpenContext, rollout: str) -> Page:
    return open_context("light", rollout).new_page()


@pytest.fixture
def models_page(rollout_page: Page) -> Page:
    return opened(rollout_page)


def opened(page: Page, version: str = "digits version 1") -> Page:
    """Open the page, and wait for the details of a version."""
    page.goto(f"/ui/models#{version.replace(' version ', '/')}")
    expect(page.get_by_role("heading", name=version, exact=True)).to_be_visible()
    return page


def row(page: Page, version: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=version, exact=True))


def test_page_shows_what_serves_and_what_was_refused_and_why(models_page: Page) -> None:
    expect(row(models_page, "digits version 1")).to_contain_text("stable, 75 %")
    for badge in ("default", "pinned"):
        expect(row(models_page, "digits version 1")).to_contain_text(badge)
    expect(row(models_page, "digits version 2")).to_contain_text("canary, 25 %")
    refused = models_page.get_by_role("region", name="Refused versions")
    expect(refused).to_contain_text("digits version 3")
    expect(refused).to_contain_text(REASON)
    expect(models_page.get_by_role("status")).to_contain_text("2 models · 3 versions · 1 refused")


def test_keyboard_chooses_a_version_and_keeps_its_place(models_page: Page) -> None:
    models_page.get_by_role("link", name="digits version 2").focus()
    models_page.keyboard.press("Enter")
    expect(models_page.get_by_role("heading", name="digits version 2")).to_be_visible()
    expect(models_page.get_by_role("link", name="digits version 2")).to_be_focused()
    layer = models_page.get_by_role("row", name="convolution 1")
    expect(layer).to_contain_text("3")
    expect(models_page.get_by_role("img", name="Confusion matrix of 10 classes")).to_be_visible()
    models_page.go_back()
    expect(models_page.get_by_role("heading", name="digits version 1")).to_be_visible()


@pytest.mark.parametrize("fragment", ["100%", "%"])
def test_address_that_names_no_version_shows_the_first_one(
    fragment: str, rollout_page: Page
) -> None:
    rollout_page.goto(f"/ui/models#{fragment}")
    expect(rollout_page.get_by_role("heading", name="digits version 1", exact=True)).to_be_visible()
    expect(rollout_page.get_by_role("alert")).to_be_hidden()


def test_examples_are_shown_and_the_report_opens(models_page: Page) -> None:
    images = models_page.get_by_role("img", name="Validation image")
    expect(images).to_have_count(8)
    images.last.scroll_into_view_if_needed()
    models_page.wait_for_function(
        "() => [...document.querySelectorAll('.thumbnails img')].every((each) => each.naturalWidth)"
    )
    models_page.get_by_role("link", name="The report").click()
    expect(models_page.get_by_role("heading", name="digits, version 1")).to_be_visible()
    widths = models_page.evaluate("() => [...document.images].map((each) => each.naturalWidth)")
    assert len(widths) == 10
    assert min(widths) > 100


def test_two_versions_stand_side_by_side_with_their_differences(models_page: Page) -> None:
    models_page.get_by_label("Compare with").select_option("digits version 2")
    table = models_page.get_by_role("table").filter(has_text="Difference")
    expect(table.get_by_role("row", name="Right")).to_contain_text("10 points worse")
    expect(table.get_by_role("row", name="Dead units")).to_contain_text("+3 worse")
    expect(table.get_by_role("row", name="NLL")).to_contain_text("the same")
    for version in ("digits version 1", "digits version 2"):
        title = f"What it takes for what: {version}"
        expect(models_page.get_by_role("heading", name=title)).to_be_visible()


def test_models_measured_on_different_images_are_not_judged(models_page: Page) -> None:
    models_page.get_by_label("Compare with").select_option("elsewhere version 1")
    details = models_page.get_by_role("region", name="digits version 1 and elsewhere version 1")
    expect(details).to_contain_text("They were measured on different images")
    expect(details.get_by_role("row", name="Right")).not_to_contain_text("worse")
    expect(details.get_by_role("row", name="AURC")).to_have_count(1)


def test_metrics_that_are_missing_are_left_open(models_page: Page) -> None:
    opened(models_page, "elsewhere version 1")
    expect(row(models_page, "elsewhere version 1")).to_contain_text("93.0")
    details = models_page.get_by_role("region", name="elsewhere version 1")
    expect(details).to_contain_text("It was not measured.")
    expect(details).to_contain_text("The bundle carries none.")


def test_page_with_a_hundred_classes_names_the_worst(page: Page, server: ServiceProcess) -> None:
    def confuse(route: Route) -> None:
        body = route.fetch().json()
        counts = body["manifest"]["metrics"]["test"]["confusion_matrix"][7]
        counts[:] = [0] * 8 + [2] + [0] * 91
        route.fulfill(json=body)

    page.route(f"{server.url}/models/hundred?version=1", confuse)
    opened(page, "hundred version 1")
    details = page.get_by_role("region", name="hundred version 1", exact=True)
    expect(details.get_by_role("row", name="kind 07").first).to_contain_text("0 %")
    expect(details.get_by_role("listitem").first).to_contain_text(
        "kind 07 taken for kind 08: 2 of 2"
    )
    expect(details.locator("svg")).to_have_count(0)
    assert details.get_by_role("row").count() < 60


def test_refresh_changes_only_what_has_changed(models_page: Page) -> None:
    first = models_page.locator("#versions tr").first.element_handle()
    with models_page.expect_response("**/models"):
        pass
    with models_page.expect_response("**/models"):
        pass
    assert first is not None
    assert first.evaluate("(row) => row.isConnected")


def test_page_says_that_no_model_serves_and_why(
    page: Page, server: ServiceProcess, page_may_ask_in_vain: None
) -> None:
    reason = "The models folder holds no bundle; train one with python -m training."
    answer(page, f"{server.url}/models", listing())
    answer(page, f"{server.url}/health/ready", {"error": reason, "code": "not_ready"}, 503)
    page.goto("/ui/models")
    expect(page.get_by_role("alert")).to_have_text(reason)
    expect(page.get_by_role("table")).to_have_count(0)


def test_page_lists_twenty_models(page: Page, server: ServiceProcess) -> None:
    with server.client() as client:
        model = client.get("/models").json()["models"][0]
    model["versions"][0]["examples"] = 0
    models = [{**model, "name": f"model-{number}"} for number in range(20)]
    answer(page, f"{server.url}/models", listing(*models))
    manifest = f"{server.url}/models/digits"
    page.route("**/models/model-*", lambda route: route.continue_(url=manifest))
    page.goto("/ui/models")
    expect(page.locator("#versions tr")).to_have_count(20)
    expect(page.get_by_role("heading", name="model-0 version 1")).to_be_visible()


def test_page_says_when_the_service_is_gone_and_recovers(
    models_page: Page, page_may_ask_in_vain: None
) -> None:
    models_page.route("**/models", lambda route: route.abort())
    alert = models_page.get_by_role("alert")
    expect(alert).to_have_text(
        "The service does not answer. The page goes on trying.", timeout=RECOVERY_MILLISECONDS
    )
    expect(row(models_page, "digits version 1")).to_be_visible()
    models_page.unroute("**/models")
    expect(alert).to_be_hidden()


def test_details_that_were_refused_are_said_and_asked_for_again(
    rollout_page: Page, page_may_ask_in_vain: None
) -> None:
    refusal = {"error": "The service is busy; try again in a second.", "code": "overloaded"}
    rollout_page.route(
        "**/models/digits?version=1",
        lambda route: route.fulfill(status=503, json=refusal),
        times=1,
    )
    rollout_page.goto("/ui/models")
    expect(rollout_page.get_by_role("alert")).to_have_text(refusal["error"])
    title = rollout_page.get_by_role("heading", name="digits version 1", exact=True)
    expect(title).to_be_visible(timeout=RECOVERY_MILLISECONDS)
    expect(rollout_page.get_by_role("alert")).to_be_hidden()


def test_share_that_is_nearly_all_or_nearly_none_is_not_written_as_such(
    rollout_page: Page, rollout: str
) -> None:
    def measure(route: Route) -> None:
        body = route.fetch().json()
        test = {"accuracy": 0.9999, "images": 10_000, "answered": 0.5, "error": 0.0004}
        for model in body["models"]:
            for version in model["versions"]:
                version["test"] |= test
        route.fulfill(json=body)

    rollout_page.route(f"{rollout}/models", measure)
    opened(rollout_page)
    summary = rollout_page.locator(".summary")
    expect(summary).to_contain_text("Right on >\u00a099.9\u00a0% of 10,000 test images.")
    expect(summary).to_contain_text("and <\u00a00.1\u00a0% of these answers are wrong.")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_page_is_usable_by_all_and_fits(look: str, open_context: OpenContext, rollout: str) -> None:
    page = opened(open_context(look, rollout).new_page())
    for other in ("", "digits/2"):
        page.get_by_label("Compare with").select_option(other)
        heading = "Side by side" if other else "Figures"
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        assert_accessible(page)
        assert_fits(page)


def listing(*models: Any) -> dict[str, Any]:
    """Return a response of GET /models."""
    return {"default": None, "models": list(models), "refused": [], "unloaded": []}


def answer(page: Page, address: str, body: dict[str, Any], status: int = 200) -> None:
    """Answer requests of the page in the place of the service."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=status, json=body)

    page.route(address, fulfil)
