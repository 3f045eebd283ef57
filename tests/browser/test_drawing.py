"""Drawing on the page Try: with mouse, finger and keyboard, answered stroke by stroke."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenContext
from tests.browser.try_page import FOUR, TryPage
from tests.bundles import copy_bundle
from tests.pictures import encode
from tests.service.process import service_process
from training.data.dataset import Split

pytestmark = pytest.mark.browser

FOUR_BY_KEYS = (
    *["ArrowUp"] * 7, *["ArrowLeft"] * 2, " ", *["ArrowDown", "ArrowDown", "ArrowLeft"] * 3,
    *["ArrowDown"] * 2, *["ArrowRight"] * 9, " ",
    *["ArrowUp"] * 4, *["ArrowLeft"] * 2, " ", *["ArrowDown"] * 10, " ",
)  # fmt: skip
"""The same four, from the middle of the pad in steps of a twentieth; space puts the pen down."""

RECORD_GROUNDS = """(() => {
  const { fetch } = window;
  window.grounds = [];
  window.fetch = async (url, options) => {
    if (url.pathname.endsWith("/uncertainty")) {
      const image = await createImageBitmap(options.body.get("file"));
      const context = new OffscreenCanvas(1, 1).getContext("2d");
      context.drawImage(image, 0, 0);
      const ground = context.getImageData(0, 0, 1, 1).data[0] ? "white" : "black";
      const sent = `${url.searchParams.get("model")}: ${ground}`;
      if (!options.signal?.aborted) window.grounds.push(sent);
    }
    return fetch(url, options);
  };
})()"""
"""Records of each image that is sent the model that is asked, and the colour of its corner."""
COLOURS = """(pad, places) => {
  const { data, width, height } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
  const at = ([x, y]) => data[4 * (Math.round(y * height) * width + Math.round(x * width))];
  return places.map((place) => (at(place) ? "white" : "black"));
}"""
IS_BLANK = """(canvas) => {
  const blank = document.createElement("canvas");
  [blank.width, blank.height] = [canvas.width, canvas.height];
  blank.getContext("2d").fillRect(0, 0, blank.width, blank.height);
  return canvas.toDataURL() === blank.toDataURL();
}"""


def test_four_drawn_with_the_mouse_is_a_four(try_page: TryPage) -> None:
    try_page.draw(FOUR)
    expect(try_page.spoken).to_have_text(re.compile(r"^(Perhaps )?4\b"))
    expect(try_page.answer).to_contain_text("all say 4")
    expect(try_page.request).to_contain_text("drawing.png")
    expect(try_page.page.get_by_role("link", name="Save the image")).to_be_visible()


def test_four_drawn_with_the_keyboard_is_a_four(try_page: TryPage) -> None:
    try_page.pad.focus()
    for key in FOUR_BY_KEYS:
        try_page.page.keyboard.press(key)
    expect(try_page.answer).to_contain_text(re.compile(r"asked: (all|\d\d) say 4"))


def test_four_drawn_with_a_finger_is_a_four(phone_page: Page) -> None:
    try_page = TryPage.open(phone_page)
    try_page.draw_with_finger(FOUR)
    expect(try_page.spoken).to_have_text(re.compile(r"^(Perhaps )?4\b"))


def test_second_finger_leaves_the_stroke_of_the_first_as_it_is(phone_page: Page) -> None:
    try_page = TryPage.open(phone_page)
    try_page.pad.scroll_into_view_if_needed()
    box = try_page.pad.bounding_box()
    assert box is not None
    session = phone_page.context.new_cdp_session(phone_page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": finger}
            for finger, (x, y) in enumerate(points)
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", (0.2, 0.2))
    touch("touchMove", (0.2, 0.3))
    touch("touchStart", (0.2, 0.3), (0.9, 0.9))
    touch("touchMove", (0.2, 0.7), (0.9, 0.9))
    touch("touchEnd")
    expect(try_page.answer).to_contain_text("64 variants")
    on_the_stroke, *between = [0.2, 0.5], [0.55, 0.6], [0.55, 0.8]
    colours = try_page.pad.evaluate(COLOURS, [on_the_stroke, *between])
    assert colours == ["white", "black", "black"]


@pytest.fixture
def two_grounds(
    bundle_folder: Path, tmp_path: Path, held_out: Split, open_context: OpenContext
) -> Iterator[TryPage]:
    """The page Try, with the digits and with a model whose own images are black on white."""
    models = tmp_path / "models"
    copy_bundle(bundle_folder, models)
    copy_bundle(bundle_folder, models, "ink")
    paper = encode(255 - held_out.images[0, 0])
    with service_process(models, "--default-model", "digits") as service:
        page = open_context("light", service.url).new_page()
        page.add_init_script(RECORD_GROUNDS)
        page.route(
            "**/models/ink/examples/*",
            lambda route: route.fulfill(body=paper, content_type="image/png"),
        )
        yield TryPage.open(page)


def test_drawing_is_sent_to_another_model_as_that_one_has_its_images(two_grounds: TryPage) -> None:
    two_grounds.draw(FOUR)
    expect(two_grounds.answer).to_contain_text("all say 4")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    two_grounds.page.route("**/models/ink/examples", hold)
    two_grounds.model.select_option("ink")
    expect(two_grounds.spoken).to_have_text("Waiting for the answer…")
    held[0].continue_()
    expect(two_grounds.answer.get_by_text("ink, version 1")).to_be_attached()
    grounds = two_grounds.page.evaluate("() => window.grounds")
    assert set(grounds) == {"digits: black", "ink: white"}


def test_drawing_is_sent_once_it_is_known_how_the_model_has_its_images(page: Page) -> None:
    held: list[Route] = []
    asked: list[str] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/models/digits/examples", hold)
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    try_page = TryPage(page)
    expect(try_page.pad).to_be_visible()
    try_page.draw(FOUR)
    expect(try_page.spoken).to_have_text("Waiting for the answer…")
    assert [url for url in asked if "/uncertainty" in url] == []
    held[0].continue_()
    expect(try_page.answer).to_contain_text("all say 4")


def test_only_one_request_of_a_drawing_is_in_flight(try_page: TryPage) -> None:
    sent: list[Route] = []

    def hold_the_first(route: Route) -> None:
        sent.append(route)
        if len(sent) > 1:
            route.continue_()

    try_page.page.route("**/uncertainty*", hold_the_first)
    try_page.draw(FOUR)
    assert len(sent) == 1
    sent[0].continue_()  # it shows the first dot, and a later one all that was drawn meanwhile
    expect(try_page.answer).to_contain_text("all say 4")


def test_undo_takes_the_last_stroke_back_and_clear_all(try_page: TryPage) -> None:
    def pixels() -> str:
        found: str = try_page.pad.evaluate("(pad) => pad.toDataURL()")
        return found

    empty = pixels()
    try_page.draw(FOUR[:1])
    one = pixels()
    try_page.draw(FOUR[1:])
    assert len({empty, one, pixels()}) == 3
    try_page.button("Undo").click()
    assert pixels() == one
    try_page.button("Clear").click()
    assert pixels() == empty


@pytest.mark.parametrize("button", ["Clear", "Undo"])
def test_drawing_that_is_taken_back_leaves_no_answer_and_is_not_sent_again(
    button: str, try_page: TryPage
) -> None:
    sent = try_page.page.get_by_role("img", name="The drawing as it is sent")
    try_page.draw(FOUR[:1])
    expect(try_page.answer).to_contain_text("64 variants")
    assert not sent.evaluate(IS_BLANK)
    try_page.button(button).click()
    expect(try_page.answer).to_contain_text("the answer appears here")
    expect(try_page.spoken).to_be_empty()
    expect(try_page.request).to_be_hidden()
    expect(try_page.heat_map).to_be_hidden()
    expect(try_page.page.get_by_role("link", name="Save the image")).to_be_hidden()
    assert sent.evaluate(IS_BLANK)

    asked: list[str] = []
    try_page.page.on("request", lambda request: asked.append(request.url))
    try_page.model.select_option("hundred")
    expect(try_page.example("Noise")).to_be_visible()
    expect(try_page.button("Choose images…")).to_be_visible()
    assert [url for url in asked if "/uncertainty" in url] == []


def test_drawing_is_asked_about_again_when_the_page_goes_back_to_it(
    try_page: TryPage, held_out: Split
) -> None:
    try_page.draw(FOUR)
    expect(try_page.answer).to_contain_text("all say 4")
    try_page.upload(encode(held_out.images[list(held_out.labels).index(7), 0]))
    expect(try_page.answer).to_contain_text("all say 7")
    try_page.button("Draw").click()
    expect(try_page.answer).to_contain_text("all say 4")
    expect(try_page.request).to_contain_text("drawing.png")


def test_drawing_is_the_default_for_small_grey_images_alone(try_page: TryPage) -> None:
    expect(try_page.pad).to_be_visible()
    try_page.model.select_option("hundred")
    expect(try_page.button("Choose images…")).to_be_visible()
    expect(try_page.pad).to_be_hidden()
