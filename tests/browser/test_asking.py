"""Settings: sliders and methods change the answer, and the shown request is the sent one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import FilePayload, Page, Request, Route, expect

from tests.browser.try_page import Answer, TryPage
from tests.pictures import encode
from training.data.dataset import Split

pytestmark = pytest.mark.browser

SLIDERS = {
    "Variants asked": ("samples", "ArrowRight"),
    "Which variants": ("seed", "ArrowRight"),
    "Coverage of the set": ("coverage", "ArrowRight"),
    "Wrong answers allowed": ("max_risk", "End"),
    "Usual images called unusual": ("max_false_alarm", "End"),
}
"""Of each slider, the parameter that it sets and the key that moves it."""


def parameters(answer: Answer) -> dict[str, str]:
    """Return the query of a question."""
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.url).query).items()}


@pytest.fixture
def asked(try_page: TryPage, four: bytes) -> TryPage:
    """The page with the answer for a four, and its settings open."""
    with try_page.answered():
        try_page.upload(four)
    try_page.open_settings()
    return try_page


@pytest.mark.parametrize("name", SLIDERS)
def test_slider_changes_the_question_and_the_shown_request(name: str, asked: TryPage) -> None:
    parameter, key = SLIDERS[name]
    assert f"{parameter}=" not in asked.request.inner_text()
    with asked.answered() as answer:
        asked.slider(name).press(key)
    value = parameters(answer)[parameter]
    assert answer.body[parameter] == json.loads(value)
    expect(asked.request).to_contain_text(f"{parameter}={value}")


def test_sliders_stand_where_the_service_has_them(asked: TryPage) -> None:
    expect(asked.slider("Variants asked")).to_have_attribute("aria-valuetext", "64")
    expect(asked.slider("Coverage of the set")).to_have_attribute("aria-valuetext", "90\u00a0%")


def test_answer_follows_the_sliders(asked: TryPage) -> None:
    asked.slider("Variants asked").press("ArrowRight")
    expect(asked.answer).to_contain_text("128 variants of the network")
    asked.slider("Coverage of the set").press("End")
    expect(asked.answer).to_contain_text("holds the truth for 99.9\u00a0% of images")
    asked.slider("Usual images called unusual").press("End")
    expect(asked.answer).to_contain_text("Is it an image like those that the model knows?")


def test_seed_changes_which_variants_are_asked(asked: TryPage) -> None:
    with asked.answered() as first:
        asked.slider("Which variants").press("ArrowRight")
    with asked.answered() as second:
        asked.slider("Which variants").press("ArrowRight")
    assert parameters(first)["seed"] == "1"
    assert parameters(second)["seed"] == "2"
    assert first.prediction["probabilities"] != second.prediction["probabilities"]


def test_sliders_go_back_to_what_the_service_has(asked: TryPage) -> None:
    with asked.answered():
        asked.slider("Variants asked").press("ArrowRight")
    with asked.answered() as answer:
        asked.button("As the service has it").click()
    assert "samples" not in parameters(answer)
    expect(asked.slider("Variants asked")).to_have_attribute("aria-valuetext", "64")


def test_adaptive_says_how_many_variants_were_asked(asked: TryPage) -> None:
    with asked.answered() as answer:
        asked.button("Adaptive").click()
    assert parameters(answer)["samples"] == "auto"
    used = answer.prediction["samples_used"]
    expect(asked.answer).to_contain_text(f"{used} variants of the network")
    expect(asked.slider("Variants asked")).to_be_hidden()


def test_analytic_asks_no_variant(asked: TryPage) -> None:
    with asked.answered() as answer:
        asked.button("Analytic").click()
    assert answer.body["method"] == "analytic"
    expect(asked.answer).to_contain_text("All variants of the network")
    expect(asked.answer).not_to_contain_text("standard error")
    expect(asked.button("Analytic")).to_have_attribute("aria-pressed", "true")
    expect(asked.slider("Which variants")).to_be_hidden()


def test_time_of_an_answer_is_among_its_numbers(asked: TryPage) -> None:
    asked.answer.get_by_text("All numbers").click()
    expect(asked.answer.get_by_text("From request to answer")).to_be_visible()
    expect(asked.answer.get_by_text("digits, version 1")).to_be_visible()


def run_in_shell(code: str, folder: Path) -> str:
    return subprocess.run(
        ["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def run_in_python(code: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(("language", "run"), [("curl", run_in_shell), ("Python", run_in_python)])
def test_copied_request_gives_the_answer_of_the_page(
    language: str,
    run: Callable[[str, Path], str],
    asked: TryPage,
    four: bytes,
    tmp_path: Path,
) -> None:
    asked.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with asked.answered() as answer:
        asked.slider("Which variants").press("ArrowRight")
    asked.button(language).click()
    asked.button("Copy").click()
    expect(asked.answer.get_by_text("Copied.")).to_be_visible()
    code = asked.page.evaluate("() => navigator.clipboard.readText()")
    assert code == asked.request.inner_text()

    (tmp_path / "image.png").write_bytes(four)
    assert str(answer.prediction["confidence"]) in run(code, tmp_path)


def test_copied_javascript_gives_the_answer_of_the_page(asked: TryPage, four: bytes) -> None:
    asked.button("JavaScript").click()
    code = asked.request.inner_text()
    chosen: FilePayload = {"name": "image.png", "mimeType": "image/png", "buffer": four}
    asked.page.evaluate(
        "() => document.body.append("
        "Object.assign(document.createElement('input'), { type: 'file', id: 'input' }))"
    )
    asked.page.locator("#input").set_input_files(chosen)
    with asked.page.expect_console_message() as message:
        asked.page.evaluate(f"async () => {{ {code} }}")
    assert message.value.text.startswith("4 0.9")


def test_moving_slider_asks_about_a_list_once_it_rests_and_ends_former_requests(
    page: Page, four: bytes
) -> None:
    page.clock.install()
    try_page = TryPage.open(page)
    try_page.upload(*[four] * 10)
    expect(try_page.answer.get_by_text("10 images", exact=True)).to_be_visible()
    try_page.open_settings()
    page.clock.pause_at(page.evaluate("() => Date.now() / 1000") + 60)
    in_flight: list[Request] = []
    ended: list[Request] = []

    def hold(route: Route) -> None:
        in_flight.append(route.request)

    def of_seed(seed: int) -> list[str]:
        return [request.url for request in in_flight if f"seed={seed}" in request.url]

    def end(request: Request) -> None:
        in_flight.remove(request)
        ended.append(request)

    page.route("**/uncertainty*", hold)
    page.on("requestfailed", end)
    seed = try_page.slider("Which variants")
    with page.expect_request("**/uncertainty*"):
        seed.press("ArrowRight")  # of the image that is shown, one request at a time
    for last in (20, 21):
        while seed.input_value() != str(last):
            seed.press("ArrowRight")
        page.clock.run_for(200)
        assert of_seed(last) == []
        page.clock.run_for(200)
        while len(of_seed(last)) < 8:
            page.wait_for_timeout(10)
        assert len(in_flight) == 9
    assert len(ended) == 8


def test_answer_of_a_version_that_is_not_listed_has_a_typicality_without_a_count(
    page: Page, four: bytes
) -> None:
    """As where another replica has a newer version."""

    def list_another(route: Route) -> None:
        body = route.fetch().json()
        for model in body["models"]:
            for version in model["versions"]:
                version["version"] = "9"
        route.fulfill(json=body)

    page.route("**/models", list_another)
    try_page = TryPage.open(page)
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text("4.")
    expect(try_page.answer).to_contain_text(re.compile(r"\d\s% of such images are as strange"))
    expect(try_page.answer).not_to_contain_text("of the 0 images")


def test_heat_map_takes_one_request_and_is_described(asked: TryPage) -> None:
    with asked.page.expect_response("**/occlusion*") as response:
        asked.button("Show").click()
    label = response.value.json()["label"]
    expect(asked.answer.get_by_role("img", name=f"“{label}”")).to_be_visible()
    expect(asked.heat_map).to_contain_text("of the whole network, with no part switched off")


def test_image_that_the_browser_cannot_show_is_answered_and_has_no_map(
    try_page: TryPage, held_out: Split
) -> None:
    try_page.upload(encode(held_out.images[0, 0], "TIFF"), name="four.tiff", kind="image/tiff")
    expect(try_page.answer).to_contain_text("64 variants")
    expect(try_page.page.get_by_text("This browser cannot show the file")).to_be_visible()
    expect(try_page.page.get_by_role("img", name="The image that is asked about")).to_be_hidden()
    try_page.button("Show").click()
    expect(try_page.heat_map.get_by_role("status")).to_contain_text("there is no map of it")


def test_limit_of_sure_is_said_with_its_conditions(asked: TryPage) -> None:
    expect(asked.answer).to_contain_text("That holds for images like those that the model was")


def test_legend_of_an_unusual_image_has_the_colour_of_its_chart(asked: TryPage) -> None:
    def colours(kind: str) -> set[str]:
        marks = asked.answer.locator(f".strip {kind}")
        return set(marks.evaluate_all("(all) => all.map((each) => getComputedStyle(each).fill)"))

    usual = colours(".mean")
    asked.example("Blank").click()
    expect(asked.spoken).to_contain_text("No answer")
    assert len(colours(".mean")) == len(colours(".sample")) == 1
    assert colours(".mean") != usual


@pytest.mark.parametrize("may_copy_a_selection", [True, False])
def test_request_that_may_not_be_put_on_the_clipboard_is_selected(
    may_copy_a_selection: bool, asked: TryPage
) -> None:
    asked.page.evaluate(
        """(mayCopy) => {
          navigator.clipboard.writeText = () => Promise.reject(new Error("Denied."));
          document.execCommand = () => mayCopy;
        }""",
        may_copy_a_selection,
    )
    asked.button("Copy").click()
    sentence = "Copied." if may_copy_a_selection else "does not let the page copy"
    expect(asked.answer.get_by_text(sentence)).to_be_visible()
    assert asked.page.evaluate("() => String(getSelection())") == asked.request.inner_text()
    asked.button("Python").click()
    expect(asked.answer.get_by_text(sentence)).to_be_hidden()
