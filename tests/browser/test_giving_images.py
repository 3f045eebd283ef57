"""An image is chosen, dropped, pasted or an example, and the page Try answers."""

import base64
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenContext
from tests.browser.try_page import TryPage
from tests.pictures import encode
from training.data.dataset import Split

pytestmark = pytest.mark.browser

MOST_PIXELS_OF_A_ROW = 200
"""On a phone: the name on three lines, the verdict, the figures."""
FILE = """(data) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const file = new File([bytes], "given.png", { type: "image/png" });
"""
DRAGGED = """
  const dragged = new DataTransfer();
  dragged.items.add(file);
  return dragged; }"""
COPIED = "return navigator.clipboard.write([new ClipboardItem({ 'image/png': file })]); }"


def choose(try_page: TryPage, image: bytes) -> None:
    try_page.upload(image)


def drop(try_page: TryPage, image: bytes) -> None:
    """Drop a file onto the page, as from a file manager."""
    try_page.button("Image").click()
    dragged = try_page.page.evaluate_handle(FILE + DRAGGED, base64.b64encode(image).decode())
    area = try_page.page.get_by_text("Drop images here")
    for event in ("dragenter", "dragover", "drop"):
        area.dispatch_event(event, {"dataTransfer": dragged})


def paste(try_page: TryPage, image: bytes) -> None:
    """Put an image on the clipboard and press the keys that paste."""
    try_page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    try_page.page.evaluate(FILE + COPIED, base64.b64encode(image).decode())
    try_page.page.keyboard.press("Control+V")


@pytest.mark.parametrize("give", [choose, drop, paste])
def test_given_four_is_a_four(
    give: Callable[[TryPage, bytes], None], try_page: TryPage, four: bytes
) -> None:
    with try_page.answered() as answer:
        give(try_page, four)
    assert answer.prediction["label"] == "4"
    expect(try_page.spoken).to_have_text(re.compile(r"4\. \S+\s% confident\. ✓ Sure"))
    expect(try_page.answer).to_contain_text("64 variants of the network")
    expect(try_page.answer).to_contain_text("all say 4")
    preview = try_page.page.get_by_role("img", name="The image that is asked about")
    expect(preview).to_be_visible()
    assert preview.evaluate("(image) => image.naturalWidth") > 0


def test_former_answer_goes_while_that_to_another_image_is_awaited(
    try_page: TryPage, four: bytes
) -> None:
    panel = try_page.page.locator("#answer")
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("✓ Sure")
    expect(panel).to_have_attribute("aria-busy", "false")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    try_page.page.route("**/uncertainty*", hold)
    try_page.upload(four, name="other.png")
    expect(panel).to_have_text("Waiting for the answer…")
    expect(panel).to_have_attribute("aria-busy", "true")
    expect(try_page.spoken).to_have_text("Waiting for the answer…")
    expect(try_page.heat_map).to_be_hidden()
    expect(try_page.request).to_contain_text("other.png")

    held[0].continue_()
    expect(try_page.spoken).to_contain_text("✓ Sure")
    expect(panel).to_have_attribute("aria-busy", "false")
    expect(try_page.heat_map).to_be_visible()


def test_several_images_are_listed_the_most_doubtful_first(
    try_page: TryPage, held_out: Split
) -> None:
    try_page.upload(*map(encode, held_out.images[:3, 0]))
    rows = try_page.answer.get_by_role("table").locator("tbody").get_by_role("row")
    expect(rows).to_have_count(3)
    expect(try_page.answer.get_by_text("3 images", exact=True)).to_be_visible()

    doubts = [float(text) for text in rows.locator("td:nth-child(4)").all_text_contents()]
    assert doubts[0] > doubts[2]
    assert all(one >= other for one, other in pairwise(doubts))
    try_page.page.get_by_role("combobox", name="Sort by").select_option("given")
    expect(rows.first.get_by_role("button")).to_have_text("0-image.png")


def test_rows_stay_as_they_are_until_all_images_are_answered(
    try_page: TryPage, four: bytes
) -> None:
    def answer(route: Route, doubt: float) -> None:
        body = route.fetch().json()
        body["predictions"][0]["predictive_entropy"] = doubt
        route.fulfill(json=body)

    def names() -> list[str]:
        return rows.get_by_role("button").all_inner_texts()

    def hold(route: Route) -> None:
        held.append(route)

    held: list[Route] = []
    try_page.page.route("**/uncertainty*", hold)
    try_page.upload(four, four, four)
    rows = try_page.answer.get_by_role("table").locator("tbody").get_by_role("row")
    expect(rows).to_have_count(3)
    first = rows.first.element_handle()
    given = names()
    while len(held) < 4:  # with the request of the image that is shown
        try_page.page.wait_for_timeout(10)
    for route in held[:3]:
        answer(route, 1.0)
    expect(rows.get_by_text("✓ Sure")).to_have_count(2)
    assert names() == given
    answer(held[3], 2.0)
    expect(try_page.answer.get_by_text("3 images", exact=True)).to_be_visible()
    expect(rows.first.get_by_role("button")).to_have_text(given[2])
    assert first.evaluate("(row) => row.isConnected")


@pytest.mark.parametrize("look", ["light", "phone"])
def test_list_of_images_with_long_names_is_read_without_scrolling_sideways(
    look: str, open_context: OpenContext, four: bytes, page_may_ask_in_vain: None
) -> None:
    try_page = TryPage.open(open_context(look).new_page())
    try_page.upload(four, b"not an image", four, name="IMG_20240612_101112_photograph.png")
    expect(try_page.answer.get_by_text("3 images", exact=True)).to_be_visible()
    rows = try_page.answer.get_by_role("table").locator("tbody").get_by_role("row")
    expect(rows).to_have_count(3)
    for row in rows.all():
        assert row.evaluate("(row) => row.closest('.images').clientWidth - row.scrollWidth") >= 0
        assert row.evaluate("(row) => row.clientHeight") < MOST_PIXELS_OF_A_ROW


def test_strange_and_doubtful_image_has_the_same_word_in_the_list_and_above(
    try_page: TryPage, four: bytes
) -> None:
    def doubt(route: Route) -> None:
        body = route.fetch().json()
        body["predictions"][0] |= {"abstain": True, "abstain_because": "both"}
        route.fulfill(json=body)

    try_page.page.route("**/uncertainty*", doubt)
    try_page.upload(four, four)
    word = try_page.answer.get_by_text("⚠ Unusual image, and not sure", exact=True)
    expect(word).to_have_count(3)


def test_image_of_the_list_is_shown_when_it_is_chosen(try_page: TryPage, held_out: Split) -> None:
    labels = [str(label) for label in held_out.labels[:3]]
    try_page.upload(*map(encode, held_out.images[:3, 0]))
    expect(try_page.answer.get_by_text("3 images", exact=True)).to_be_visible()
    with try_page.answered() as answer:
        try_page.button("2-image.png").click()
    assert answer.prediction["label"] == labels[2]
    expect(try_page.request).to_contain_text("file=@2-image.png")
    expect(try_page.spoken).to_contain_text(f"{labels[2]}.")


def test_image_that_is_none_does_not_keep_the_others_from_the_list(
    try_page: TryPage, four: bytes, page_may_ask_in_vain: None
) -> None:
    try_page.upload(four, b"not an image", four)
    table = try_page.answer.get_by_role("table")
    expect(table.get_by_text("✓ Sure")).to_have_count(2)
    expect(table.get_by_text("not an image that can be read")).to_have_count(1)


def test_example_of_the_model_is_answered(try_page: TryPage) -> None:
    examples = try_page.page.get_by_role("group", name="Or one of these").get_by_role("button")
    label = examples.first.inner_text()
    with try_page.answered() as answer:
        examples.first.click()
    assert label in answer.prediction["probabilities"]
    expect(try_page.spoken).to_contain_text(f"{answer.prediction['label']}")


@pytest.mark.parametrize("name", ["Blank", "Noise"])
def test_strange_image_is_not_answered_and_the_reason_is_said(name: str, try_page: TryPage) -> None:
    with try_page.answered() as answer:
        try_page.example(name).click()
    assert answer.prediction["abstain_because"] in {"unusual", "both"}
    expect(try_page.spoken).to_contain_text("No answer. ")
    expect(try_page.spoken).to_contain_text("⚠ Unusual image")
    expect(try_page.answer).to_contain_text("It is unlike the images that the model knows")


def test_noise_is_another_at_each_click(try_page: TryPage) -> None:
    with try_page.answered() as first:
        try_page.example("Noise").click()
    with try_page.answered() as second:
        try_page.example("Noise").click()
    assert first.prediction["probabilities"] != second.prediction["probabilities"]


def test_photograph_of_the_camera_is_answered(try_page: TryPage) -> None:
    try_page.page.context.grant_permissions(["camera"])
    try_page.button("Image").click()
    try_page.button("Photograph…").click()
    with try_page.answered() as answer:
        try_page.button("Take the photograph").click()
    assert answer.prediction["label"] in answer.prediction["probabilities"]
    expect(try_page.page.get_by_role("dialog")).to_be_hidden()
    expect(try_page.request).to_contain_text("photograph.jpg")


def test_camera_that_may_not_be_used_is_said_in_a_sentence(try_page: TryPage) -> None:
    try_page.page.context.clear_permissions()
    try_page.button("Image").click()
    try_page.button("Photograph…").click()
    dialog = try_page.page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text("choose a file.")
    try_page.button("Close").click()
    expect(dialog).to_be_hidden()
