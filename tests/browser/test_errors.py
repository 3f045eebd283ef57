"""Whatever goes wrong, the page Try says it in a sentence, and goes on once it can."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import ACTION_TIMEOUT_SECONDS, MAX_BODY_BYTES, OpenContext
from tests.browser.try_page import TryPage
from tests.pictures import bomb
from tests.service.process import ServiceProcess, service_process

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page_may_ask_in_vain")]

UNREACHABLE = "The service does not answer. The page goes on trying."
SENTENCE = re.compile(r"^[A-Z].* .*\.$", re.DOTALL)
BUSY = {"error": "The service is busy; try again in a second.", "code": "overloaded"}
TIMES_OUT_SOON = """() => {
  const { timeout } = AbortSignal;
  AbortSignal.timeout = () => {
    AbortSignal.timeout = timeout;
    return AbortSignal.timeout(50);
  };
}"""
"""Lets the next request of the page have 50 ms."""
BREAKS_OFF = """() => {
  const { fetch } = window;
  window.fetch = async () => {
    window.fetch = fetch;
    const start = (body) => {
      body.enqueue(new TextEncoder().encode('{"model": "digits", "predic'));
      body.error(new TypeError("network error"));
    };
    return new Response(new ReadableStream({ start }));
  };
}"""
"""Lets the connection break within the response to the next request of the page."""


def hold(page: Page, address: str) -> None:
    """Hold the requests to an address from now on."""
    page.route(address, lambda _: None)


def test_file_that_is_no_image_is_named_as_such(try_page: TryPage) -> None:
    try_page.upload(b"a letter", name="letter.txt", kind="text/plain")
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("not an image that can be read; send a PNG, JPEG")


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("letter.pdf", "application/pdf", b"%PDF-1.7"),
        ("numbers.json", "application/json", b'{"instances": []}'),
        ("empty.png", "image/png", b""),
        ("drawing.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("bomb.png", "image/png", bomb(20_000, 20_000)),
        ("large.png", "image/png", bytes(MAX_BODY_BYTES + 1)),
    ],
    ids=["PDF", "JSON", "empty", "SVG", "bomb", "large"],
)
def test_refusal_replaces_all_that_was_shown_of_the_former_image(
    name: str, kind: str, data: bytes, try_page: TryPage, four: bytes
) -> None:
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("✓ Sure")
    with try_page.page.expect_response("**/occlusion*"):
        try_page.button("Show").click()

    try_page.upload(data, name=name, kind=kind)
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.spoken).to_have_text(try_page.refusal.inner_text())
    expect(try_page.answer).not_to_contain_text("Sure")
    expect(try_page.heat_map).to_be_hidden()
    expect(try_page.request).to_contain_text(f"file=@{name}")


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_file_that_cannot_be_read_any_more_is_named_and_not_asked_about_again(
    change: str, try_page: TryPage, four: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "four.png"
    file.write_bytes(four)
    try_page.button("Image").click()
    with try_page.page.expect_file_chooser() as chooser:
        try_page.button("Choose images…").click()
    chooser.value.set_files(file)
    expect(try_page.spoken).to_contain_text("4.")
    if change == "changed":
        file.write_bytes(four * 2)
    else:
        file.unlink()

    asked: list[str] = []
    try_page.page.on("request", lambda request: asked.append(request.url))
    try_page.open_settings()
    try_page.button("Adaptive").click()
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("“four.png” cannot be read")
    assert [url for url in asked if "/uncertainty" in url] == []


def test_image_that_cannot_be_read_is_named_as_such(try_page: TryPage, four: bytes) -> None:
    try_page.upload(four[:40])
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("not an image that can be read")


def test_file_that_is_too_large_is_refused_with_the_limit(try_page: TryPage) -> None:
    try_page.upload(bytes(MAX_BODY_BYTES + 1))
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("200,000 bytes")


def test_image_of_too_many_pixels_is_refused_with_the_limit(try_page: TryPage) -> None:
    try_page.upload(bomb(20_000, 20_000))
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("25,000,000")


def test_more_variants_than_the_service_allows_are_refused_with_the_limit(
    try_page: TryPage, four: bytes
) -> None:
    with try_page.answered():
        try_page.upload(four)
    try_page.open_settings()
    try_page.slider("Variants asked").press("End")
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("512")


def test_settings_that_change_before_the_answer_are_asked_with_next(
    try_page: TryPage, four: bytes
) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    try_page.page.route("**/uncertainty*", hold, times=1)
    try_page.upload(four)
    try_page.open_settings()
    slider = try_page.slider("Variants asked")
    slider.focus()
    expect(slider).to_be_focused()
    slider.press("End")
    expect(try_page.page.locator("#snippet")).to_contain_text("samples=1024")
    held[0].continue_()
    expect(try_page.refusal).to_contain_text("512")


def test_model_that_is_gone_is_named(try_page: TryPage) -> None:
    def ask_for_another(route: Route) -> None:
        route.continue_(url=route.request.url.replace("model=digits", "model=gone"))

    try_page.page.route("**/uncertainty*", ask_for_another)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("No model 'gone'")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_service_is_asked_again_until_it_answers(status: int, try_page: TryPage) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=status, json=BUSY)

    try_page.page.route("**/uncertainty*", refuse, times=1)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(BUSY["error"])
    expect(try_page.spoken).to_contain_text("No answer")
    expect(try_page.refusal).to_be_hidden()


def test_error_page_of_a_proxy_is_a_sentence_with_its_status(try_page: TryPage) -> None:
    def fail(route: Route) -> None:
        route.fulfill(status=502, body="<h1>Bad Gateway</h1>", content_type="text/html")

    try_page.page.route("**/uncertainty*", fail)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text("The service answered with status 502.")


@pytest.mark.parametrize("status", [429, 502, 504])
def test_list_of_models_that_was_refused_is_asked_for_again(status: int, page: Page) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=status, body="<h1>Not now</h1>", content_type="text/html")

    page.route("**/models", refuse, times=1)
    page.goto("/")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(f"The service answered with status {status}.")
    expect(TryPage(page).example("Noise")).to_be_visible()
    expect(alert).to_be_hidden()


def test_examples_that_were_refused_are_asked_for_again(page: Page) -> None:
    page.route(
        "**/models/digits/examples/0*", lambda route: route.fulfill(status=429, json=BUSY), times=1
    )
    page.goto("/")
    examples = page.get_by_role("group", name="Or one of these").get_by_role("button")
    expect(examples).to_have_count(10)


def test_service_is_asked_again_when_it_says(page: Page) -> None:
    page.clock.install()
    try_page = TryPage.open(page)
    asked: list[str] = []

    def refuse_once(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(status=429, json=BUSY, headers={"Retry-After": "50"})

    page.route("**/uncertainty*", refuse_once)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(BUSY["error"])
    page.clock.run_for(30_000)
    assert len(asked) == 1
    page.clock.run_for(20_000)
    expect(try_page.refusal).to_be_hidden()
    expect(try_page.spoken).to_contain_text("No answer")


def test_page_that_is_not_the_service_is_named_as_such(try_page: TryPage) -> None:
    def log_in(route: Route) -> None:
        route.fulfill(body="<h1>Log in</h1>", content_type="text/html")

    try_page.page.route("**/uncertainty*", log_in)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_contain_text("What has answered is not the service")


def test_answer_that_does_not_come_keeps_no_other_image_waiting(
    try_page: TryPage, four: bytes
) -> None:
    asked: list[Route] = []

    def hold_the_first(route: Route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    try_page.page.route("**/uncertainty*", hold_the_first)
    try_page.example("Blank").click()
    expect(try_page.spoken).to_have_text("Waiting for the answer…")
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("4.")


def test_answer_that_does_not_come_in_time_is_asked_for_again(try_page: TryPage) -> None:
    hold(try_page.page, "**/uncertainty*")
    try_page.page.evaluate(TIMES_OUT_SOON)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(UNREACHABLE)
    try_page.page.unroute("**/uncertainty*")
    expect(try_page.spoken).to_contain_text("No answer. ")


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/", "models"), ("/ui/models", "models"), ("/ui/monitor", "metrics/recent")],
)
def test_page_says_that_its_first_answer_does_not_come_in_time_and_asks_again(
    path: str, asked: str, page: Page, server: ServiceProcess
) -> None:
    page.add_init_script(f"({TIMES_OUT_SOON})()")
    hold(page, f"{server.url}/{asked}")
    page.goto(path)
    expect(page.get_by_role("alert")).to_have_text(UNREACHABLE)
    page.unroute(f"{server.url}/{asked}")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_answer_that_breaks_off_is_asked_for_again(try_page: TryPage) -> None:
    try_page.page.evaluate(BREAKS_OFF)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(UNREACHABLE)
    expect(try_page.refusal).to_be_hidden()
    expect(try_page.spoken).to_contain_text("No answer. ")


def test_error_goes_away_with_the_next_answer(try_page: TryPage, four: bytes) -> None:
    try_page.upload(b"not an image")
    expect(try_page.refusal).to_be_visible()
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("4.")
    expect(try_page.refusal).to_be_hidden()


def test_page_goes_on_when_the_service_comes_back(
    two_models: Path, open_context: OpenContext
) -> None:
    with service_process(two_models, "--models", "digits") as service:
        port, url = service.port, service.url
        try_page = TryPage.open(open_context("light", url).new_page())
        try_page.example("Blank").click()
        expect(try_page.spoken).to_contain_text("No answer")

    examples = try_page.page.get_by_role("group", name="Or one of these").get_by_role("button")
    for example in (examples.first, try_page.example("Noise")):
        example.click()
        expect(try_page.refusal).to_have_text(UNREACHABLE)
        expect(try_page.spoken).to_have_text(UNREACHABLE)

    with service_process(two_models, "--models", "digits", port=port):
        expect(try_page.refusal).to_be_hidden(timeout=1000 * ACTION_TIMEOUT_SECONDS)
        expect(try_page.request).to_contain_text("noise.png")
        expect(try_page.spoken).to_contain_text("No answer")


def test_list_goes_on_when_the_service_comes_back(try_page: TryPage, four: bytes) -> None:
    try_page.upload(*[four] * 10)  # more than are asked about at once
    table = try_page.answer.get_by_role("table")
    expect(table.get_by_text("✓ Sure")).to_have_count(10)
    try_page.page.route("**/uncertainty*", lambda route: route.abort())
    try_page.open_settings()
    try_page.button("Adaptive").click()
    expect(table.get_by_text(UNREACHABLE)).not_to_have_count(0)
    expect(table.get_by_text("✓ Sure")).to_have_count(0)
    expect(try_page.refusal).to_have_text(UNREACHABLE)

    try_page.page.unroute("**/uncertainty*")
    expect(table.get_by_text("✓ Sure")).to_have_count(10)
    expect(try_page.spoken).to_contain_text("✓ Sure")


def test_images_of_the_list_that_were_refused_are_asked_about_again(
    try_page: TryPage, four: bytes
) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=429, json=BUSY, headers={"Retry-After": "1"})

    try_page.page.route("**/uncertainty*", refuse, times=6)
    try_page.upload(*[four] * 10)
    table = try_page.answer.get_by_role("table")
    expect(table.get_by_text(BUSY["error"])).not_to_have_count(0)
    expect(try_page.answer.get_by_text("10 images", exact=True)).to_be_visible()
    expect(table.get_by_text("✓ Sure")).to_have_count(10)


def test_heat_map_is_tried_again_until_the_service_answers(try_page: TryPage, four: bytes) -> None:
    try_page.upload(four)
    try_page.page.route("**/occlusion*", lambda route: route.abort())
    try_page.button("Show").click()
    expect(try_page.heat_map.get_by_role("status")).to_have_text(UNREACHABLE)
    expect(try_page.spoken).to_contain_text("✓ Sure")

    try_page.page.unroute("**/occlusion*")
    expect(try_page.heat_map.get_by_role("img", name="“4”")).to_be_visible()
    expect(try_page.heat_map.get_by_role("status")).to_be_hidden()
