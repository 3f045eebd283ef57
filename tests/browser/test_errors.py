"""Whatever goes wrong, the page Try says it in a sentence, and goes on once it can."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import ACTION_TIMEOUT_SECONDS, MAX_BODY_BYTES, OpenContext
from tests.browser.try_page import TryPage
from tests.pictures import bomb
from tests.service.process import service_process

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page_may_ask_in_vain")]

UNREACHABLE = "The service does not answer. The page goes on trying."
SENTENCE = re.compile(r"^[A-Z].* .*\.$", re.DOTALL)
BUSY = {"error": "The service is busy; try again in a second.", "code": "overloaded"}


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
    try_page.upload(four)
    try_page.open_settings()
    try_page.slider("Variants asked").press("End")
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("512")


def test_model_that_is_gone_is_named(try_page: TryPage) -> None:
    def ask_for_another(route: Route) -> None:
        route.continue_(url=route.request.url.replace("model=digits", "model=gone"))

    try_page.page.route("**/uncertainty*", ask_for_another)
    try_page.example("Blank").click()
    expect(try_page.refusal).to_have_text(SENTENCE)
    expect(try_page.refusal).to_contain_text("No model 'gone'")


def test_busy_service_is_asked_again_until_it_answers(try_page: TryPage) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=503, json=BUSY, headers={"Retry-After": "1"})

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


def test_heat_map_is_tried_again_until_the_service_answers(try_page: TryPage, four: bytes) -> None:
    try_page.upload(four)
    try_page.page.route("**/occlusion*", lambda route: route.abort())
    try_page.button("Show").click()
    expect(try_page.heat_map.get_by_role("status")).to_have_text(UNREACHABLE)
    expect(try_page.spoken).to_contain_text("✓ Sure")

    try_page.page.unroute("**/occlusion*")
    expect(try_page.heat_map.get_by_role("img", name="“4”")).to_be_visible()
    expect(try_page.heat_map.get_by_role("status")).to_be_hidden()
