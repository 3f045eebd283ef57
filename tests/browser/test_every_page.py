"""Every page is usable by all, in light and dark and on a phone, and asks no other host."""

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from tests.browser.accessibility import assert_accessible
from tests.browser.layout import assert_fits
from tests.browser.page_paths import page_paths
from tests.browser.try_page import TryPage

pytestmark = pytest.mark.browser

A4_PORTRAIT: ViewportSize = {"width": 718, "height": 1047}
"""At 96 dots an inch, within the margins."""


@pytest.mark.parametrize("path", page_paths())
def test_axe_finds_nothing_serious(path: str, any_page: Page) -> None:
    any_page.goto(path, wait_until="networkidle")
    assert_accessible(any_page)


@pytest.mark.parametrize("path", page_paths())
def test_phone_shows_a_page_without_scrolling_sideways(path: str, phone_page: Page) -> None:
    phone_page.goto(path, wait_until="networkidle")
    assert_fits(phone_page)


def test_printed_answer_covers_nothing_and_shows_what_is_chosen(page: Page, four: bytes) -> None:
    try_page = TryPage.open(page)
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("4.")
    page.set_viewport_size(A4_PORTRAIT)
    expect(try_page.spoken).to_have_css("position", "fixed")
    page.emulate_media(media="print")
    expect(try_page.spoken).to_have_css("position", "absolute")
    for name in ("Image", "Choose images…", "curl"):
        expect(try_page.button(name)).to_have_css("print-color-adjust", "exact")


def test_redoc_is_shown_without_the_internet(page: Page) -> None:
    """The `page` fixture finds requests to other hosts."""
    page.goto("/redoc")
    expect(page.get_by_text("/uncertainty").first).to_be_visible()


def test_request_is_sent_from_the_reference(page: Page) -> None:
    page.goto("/docs")
    name = "GET /models What is loaded"
    route = page.locator(".opblock", has=page.get_by_role("button", name=name))
    route.get_by_role("button", name=name).click()
    route.get_by_role("button", name="Try it out").click()
    with page.expect_response("**/models") as response:
        route.get_by_role("button", name="Execute").click()
    assert response.value.json()["default"] == "digits"
