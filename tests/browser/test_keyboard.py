"""The page Try without a mouse: every control is reached by Tab and works by Enter or space."""

import pytest
from playwright.sync_api import expect

from tests.browser.try_page import TryPage

pytestmark = pytest.mark.browser

# A control is known by its place among all elements.
VISIBLE_CONTROLS = """() => {
  const controls = "a[href], button, input, select, summary, [tabindex='0']";
  const isUsable = (each) => each.matches(controls) && each.checkVisibility() && !each.disabled;
  const all = [...document.querySelectorAll("*")];
  return all.flatMap((each, place) => isUsable(each) ? [place] : []);
}"""
FOCUSED = "() => [...document.querySelectorAll('*')].indexOf(document.activeElement)"
DESCRIBE = "(place) => document.querySelectorAll('*')[place].cloneNode().outerHTML"
HAS_OUTLINE = """() => {
  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
  return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
}"""


def test_tab_reaches_every_control_and_shows_where_it_is(try_page: TryPage, four: bytes) -> None:
    with try_page.answered():
        try_page.upload(four)
    try_page.open_settings()
    page = try_page.page
    missing = set(page.evaluate(VISIBLE_CONTROLS))
    for _ in range(len(missing) + 1):  # once round, and the page itself between last and first
        page.keyboard.press("Tab")
        place = page.evaluate(FOCUSED)
        assert place not in missing or page.evaluate(HAS_OUTLINE), page.evaluate(DESCRIBE, place)
        missing.discard(place)
    assert [page.evaluate(DESCRIBE, place) for place in missing] == []


def test_skip_link_leads_to_the_content(try_page: TryPage) -> None:
    page = try_page.page
    page.reload()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(try_page.model).to_be_focused()


def test_page_is_used_with_keys_alone(try_page: TryPage) -> None:
    page = try_page.page
    try_page.example("Blank").focus()
    with try_page.answered():
        page.keyboard.press("Enter")
    expect(try_page.spoken).to_contain_text("No answer")

    page.get_by_text("Settings", exact=True).focus()
    page.keyboard.press("Space")
    try_page.button("Adaptive").focus()
    with try_page.answered():
        page.keyboard.press("Space")
    expect(try_page.button("Adaptive")).to_have_attribute("aria-pressed", "true")

    try_page.button("Python").focus()
    page.keyboard.press("Enter")
    expect(try_page.request).to_contain_text("import requests")


def test_focus_stays_on_the_image_of_the_list_that_is_chosen(
    try_page: TryPage, four: bytes
) -> None:
    try_page.upload(four, four, four)
    expect(try_page.answer.get_by_text("3 images", exact=True)).to_be_visible()
    name = try_page.button("1-image.png")
    name.focus()
    with try_page.answered():
        try_page.page.keyboard.press("Enter")
    expect(try_page.answer.get_by_role("row", name="1-image.png")).to_have_class("selected")
    expect(name).to_be_focused()


def test_focus_is_kept_when_an_answer_arrives(try_page: TryPage) -> None:
    try_page.open_settings()
    with try_page.answered():
        try_page.example("Blank").click()
    slider = try_page.slider("Variants asked")
    slider.focus()
    for count in ("128", "256"):
        try_page.page.keyboard.press("ArrowRight")
        expect(try_page.answer).to_contain_text(f"{count} variants")
    expect(slider).to_be_focused()
