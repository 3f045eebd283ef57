"""/docs and /redoc in Chromium: below path prefixes, under their policy, without another host."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, Response, expect

from tests.browser.accessibility import assert_accessible
from tests.browser.chromium import LOOKS
from tests.pictures import encode
from tests.service.nginx import nginx
from tests.service.process import ServiceProcess, service_process
from training.data.dataset import Split

ROOT_PATH, UNKNOWN_PREFIX = "/on/dropserve", "/unknown/to/the/service"
CONTROL_REFUSED = "the server responded with a status of 403"

FORMS = {
    "/models": 200,
    "/metrics": 200,
    "/models/{name}/examples/{number}": 200,
    "/models/{name}/report": 200,
    "/uncertainty": 200,
    "/v1/models/{name}:predict": 200,
    "/v2/models/{name}/versions/{version}/infer": 200,
    "/models/{name}/canary": 403,
    "/v2/repository/models/{name}/load": 403,
}
"""Paths of operations that differ in what Swagger UI fills in or shows, and the status of each.

Without parameters, with one in the path, in the query or in a header; with a body or none; JSON,
text, HTML or an image as the answer; for all clients or for the control listener alone.
tests/service/api/test_openapi_examples.py sends the requests of every operation.
"""

EXCEPTED = {
    "nested-interactive": "Swagger UI puts the link to an operation into the button that opens it",
}
"""What axe-core finds in the markup of Swagger UI, and style sheets and attributes cannot mend."""

pytestmark = [
    pytest.mark.browser,
]


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder, "--root-path", ROOT_PATH) as process:
        yield process


@pytest.fixture(scope="module", params=["root path", "prefix that the service does not know"])
def base(
    request: pytest.FixtureRequest,
    service: ServiceProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Return the address below which the browser finds the service."""
    if request.param == "root path":
        yield f"{service.url}{ROOT_PATH}/"
        return
    locations = f"location {UNKNOWN_PREFIX}/ {{ proxy_pass {service.url}/; }}"
    with nginx(tmp_path_factory.mktemp("nginx"), locations) as address:
        yield f"{address}{UNKNOWN_PREFIX}/"


class Visit:
    """A page, with what it logged and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on(
            "console",
            lambda line: self.errors.append(line.text) if line.type == "error" else None,
        )

    def check(self, base: str) -> None:
        """Fail if there was an error, or a request that did not go below `base`."""
        assert self.errors == []
        local = (base, "blob:", "data:")
        assert [each for each in self.requests if not each.startswith(local)] == []


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    page = browser.new_page()
    yield Visit(page)
    page.close()


def open_operation(page: Page, path: str) -> Locator:
    """Open the form of POST or GET `path` in Swagger UI, ready to be sent."""
    operation = page.locator(".opblock").filter(
        has=page.locator(f'.opblock-summary-path[data-path="{path}"]')
    )
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    return operation


def execute(page: Page, operation: Locator) -> Response:
    """Send the form; return the response."""
    with page.expect_response(lambda response: "openapi.json" not in response.url) as answered:
        operation.get_by_role("button", name="Execute").click()
    return answered.value


def test_docs_list_every_route(base: str, visit: Visit, service: ServiceProcess) -> None:
    visit.page.goto(f"{base}docs")
    visit.page.wait_for_selector(".opblock")
    shown = {
        (method.lower(), path.replace("\u200b", ""))
        for method, path in zip(
            visit.page.locator(".opblock-summary-method").all_inner_texts(),
            visit.page.locator(".opblock-summary-path").all_inner_texts(),
            strict=True,
        )
    }
    with service.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert shown == {(method, path) for path, methods in paths.items() for method in methods}
    visit.check(base)


def test_forms_of_every_kind_can_be_sent_as_they_are(service: ServiceProcess, visit: Visit) -> None:
    base = f"{service.url}{ROOT_PATH}/"
    visit.page.goto(f"{base}docs")
    for path, status in FORMS.items():
        operation = open_operation(visit.page, path)
        is_control = operation.get_by_text("python -m service.control").count() > 0
        answer = execute(visit.page, operation)
        assert answer.url.startswith(base)
        assert answer.status == status, answer.text()
        assert is_control == (status == 403)
        operation.locator(".opblock-summary-control").click()
    visit.errors = [each for each in visit.errors if CONTROL_REFUSED not in each]
    visit.check(base)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "image/png"])
def test_docs_upload_an_image_file(
    base: str, visit: Visit, held_out: Split, content_type: str
) -> None:
    digit = np.ascontiguousarray(held_out.images[0, 0])
    visit.page.goto(f"{base}docs")
    operation = open_operation(visit.page, "/uncertainty")
    body = operation.locator(".opblock-section-request-body")
    body.get_by_label("Request content type").select_option(content_type)
    body.locator("input[type=file]").set_input_files(
        {"name": "digit.png", "mimeType": "image/png", "buffer": encode(digit)}
    )
    answer = execute(visit.page, operation)
    assert answer.status == 200
    assert answer.request.headers["content-type"].startswith(content_type)
    (prediction,) = answer.json()["predictions"]
    shown = operation.locator(".live-responses-table tbody .response-col_description").first
    expect(shown).to_contain_text(f'"label": "{prediction["label"]}"')
    visit.check(base)


def test_docs_follow_the_colour_scheme(base: str, visit: Visit) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    visit.page.goto(f"{base}docs")
    visit.page.wait_for_selector(".opblock")
    light = visit.page.evaluate(background)
    visit.page.emulate_media(color_scheme="dark")
    expect(visit.page.locator("html.dark-mode")).to_have_count(1)
    assert visit.page.evaluate(background) != light


def test_redoc_shows_every_route_with_its_examples(
    base: str, visit: Visit, service: ServiceProcess
) -> None:
    visit.page.goto(f"{base}redoc")
    visit.page.wait_for_selector("[data-section-id]")
    with service.client() as client:
        description = client.get("/openapi.json").json()
    summaries = {
        operation["summary"]
        for methods in description["paths"].values()
        for operation in methods.values()
    }
    headings = set(visit.page.locator("#reference h2").all_inner_texts())
    assert summaries <= {each.strip() for each in headings}
    expect(visit.page.locator("#reference")).to_contain_text("instances")
    visit.check(base)


def test_pages_say_what_is_wrong_where_the_description_cannot_be_loaded(
    base: str, visit: Visit
) -> None:
    visit.page.route("**/openapi.json", lambda route: route.fulfill(status=503, body=""))
    for page in ("docs", "redoc"):
        visit.page.goto(f"{base}{page}")
        expect(visit.page.locator("#reference")).to_contain_text("answered with status 503")


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_in_docs_only_what_is_of_swagger_ui(
    browser: Browser, service: ServiceProcess, look: str
) -> None:
    page = browser.new_page(**LOOKS[look])
    page.goto(f"{service.url}{ROOT_PATH}/docs")
    operation = open_operation(page, "/uncertainty")
    execute(page, operation)
    expect(operation.locator(".live-responses-table")).to_be_visible()
    assert_accessible(page, EXCEPTED)
    page.close()


def test_axe_finds_nothing_serious_in_redoc(browser: Browser, service: ServiceProcess) -> None:
    page = browser.new_page(**LOOKS["light"])
    page.goto(f"{service.url}{ROOT_PATH}/redoc")
    page.wait_for_selector("[data-section-id]")
    assert_accessible(page)
    page.close()
