"""Where the service wants a key, each page asks for it once and keeps it in its tab."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from service.keys.key_file_changes import add_key
from service.keys.scopes import SCOPES
from tests.browser.accessibility import assert_accessible
from tests.browser.conftest import OpenContext
from tests.browser.try_page import TryPage
from tests.service.process import service_process

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page_may_ask_in_vain")]


@dataclass
class KeyedServer:
    url: str
    token: str


@pytest.fixture(scope="module")
def keyed(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    token = add_key(file, "me", frozenset(SCOPES), None)
    options = ["--default-model", "digits", "--api-keys-file", str(file)]
    with service_process(two_models, *options) as process:
        yield KeyedServer(process.url, token)


@pytest.fixture
def page(open_context: OpenContext, keyed: KeyedServer) -> Page:
    return open_context("light", keyed.url).new_page()


def give(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_page_asks_until_the_key_is_right_and_keeps_it_in_the_tab(
    page: Page, keyed: KeyedServer
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("")
    dialog = page.get_by_role("dialog", name="A key is needed")
    expect(dialog).to_contain_text("This needs a key")
    assert_accessible(page)
    give(page, "ds-00000000-" + "A" * 43)
    expect(dialog).to_contain_text("This key is not known here")
    give(page, keyed.token)
    expect(dialog).to_have_count(0)
    try_page = TryPage(page)
    try_page.example("Blank").click()
    expect(try_page.answer).to_contain_text("%")
    expect(try_page.request).to_contain_text('-H "Authorization: Bearer $DROPSERVE_KEY"')
    page.goto("ui/models")
    thumbnail = page.locator(".thumbnails img").first
    thumbnail.scroll_into_view_if_needed()
    expect(thumbnail).to_have_js_property("naturalWidth", 8)  # which is 0 until it is decoded
    with page.expect_download() as download:
        page.get_by_role("link", name="The report").click()
    report = Path(download.value.path()).read_text(encoding="utf-8")
    assert report.startswith("<!doctype html>")  # else a browser shows it in quirks mode
    assert "<html" in report
    page.goto("ui/monitor")
    expect(page.locator("main")).to_contain_text("/uncertainty")
    expect(dialog).to_have_count(0)
    assert [url for url in asked if keyed.token[12:] in url] == []
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"


def test_key_that_no_header_can_carry_is_refused_where_it_is_given(
    page: Page, keyed: KeyedServer
) -> None:
    page.goto("")
    give(page, keyed.token.replace("-", "\N{EN DASH}"))  # as programs for letters write it
    field = page.get_by_label("Key", exact=True)
    assert "digits and signs" in field.evaluate("(field) => field.validationMessage")
    assert page.evaluate("() => sessionStorage.length") == 0
    give(page, keyed.token)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(TryPage(page).example("Noise")).to_be_visible()


def test_stored_key_that_no_header_can_carry_is_asked_for_again(page: Page) -> None:
    page.add_init_script("sessionStorage.setItem('dropserve-key', 'dropserve-12\N{EN DASH}34')")
    page.goto("")
    expect(page.get_by_role("dialog")).to_contain_text("This needs a key")


def test_report_that_is_refused_is_said_and_asked_for_again(page: Page, keyed: KeyedServer) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=503, json={"error": "The service is busy.", "code": "overloaded"})

    page.goto("ui/models")
    give(page, keyed.token)
    page.route("**/report*", refuse, times=1)
    with page.expect_download():
        page.get_by_role("link", name="The report").click()
        expect(page.get_by_role("alert")).to_have_text("The service is busy.")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_page_goes_on_without_a_key_and_says_what_it_lacks(page: Page) -> None:
    page.goto("")
    page.get_by_role("button", name="Go on without").click()
    expect(page.get_by_role("alert").first).to_contain_text("This needs a key")
    expect(page.get_by_role("dialog")).to_have_count(0)
