"""Class names that are written from right to left, or are very long, stay where they belong."""

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import Page, Route, ViewportSize, expect

from model.bundle.store import MANIFEST_FILE
from tests.browser.conftest import OpenContext
from tests.browser.layout import assert_fits, assert_reads_from_left_to_right
from tests.browser.try_page import TryPage
from tests.bundles import copy_bundle, edit_manifest
from tests.service.process import service_process

pytestmark = pytest.mark.browser

HEBREW = ("חתול", "כלב", "דג", "פרה", "כבשה", "עז", "תרנגול", "נמר", "ארנב", "צב")
LONG = tuple(f"{number}_{'abcdefghijklmn' * 4}" for number in range(10))
SMALL_PHONE: ViewportSize = {"width": 360, "height": 640}
DESKTOP: ViewportSize = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def named(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of the digits with Hebrew names, and with names of 58 letters."""
    models = tmp_path_factory.mktemp("named")
    for name, class_names in (("hebrew", HEBREW), ("long", LONG)):
        bundle = copy_bundle(bundle_folder, models, name)
        metrics = orjson.loads((bundle / MANIFEST_FILE).read_bytes())["metrics"]
        metrics["test"]["confusion_matrix"][0][1] = 7
        edit_manifest(bundle, class_names=class_names, examples=[], metrics=metrics)
    with service_process(models) as process:
        yield process.url


@pytest.fixture
def named_page(open_context: OpenContext, named: str) -> Page:
    return open_context("light", named).new_page()


def split_votes(page: Page, names: tuple[str, ...]) -> None:
    """Let the page see answers of whose variants 40 choose a first class, 20 a second one."""

    def split(route: Route) -> None:
        body = route.fetch().json()
        (prediction,) = body["predictions"]
        prediction |= {"label": names[0], "abstain": True, "abstain_because": "unsure"}
        prediction |= {"votes": dict.fromkeys(names, 0) | {names[0]: 40, names[1]: 20}}
        prediction |= {"prediction_set": list(names[:3])}
        route.fulfill(json=body)

    page.route("**/uncertainty*", split)


@pytest.mark.parametrize(
    "text", ["40 say ", "It could be any of these: ", "It knows 10 classes: ", "Perhaps "]
)
def test_name_from_right_to_left_leaves_the_order_of_a_sentence(
    text: str, named_page: Page, four: bytes
) -> None:
    try_page = TryPage.open(named_page, "hebrew")
    split_votes(named_page, HEBREW)
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text(HEBREW[0])
    assert_reads_from_left_to_right(named_page.locator("p").filter(has_text=text))


def test_name_from_right_to_left_keeps_the_count_of_its_mistakes(named_page: Page) -> None:
    named_page.goto("/ui/models#hebrew/1")
    mistake = named_page.get_by_role("listitem").filter(has_text="taken for").first
    expect(mistake).to_contain_text(": 7 of ")
    assert_reads_from_left_to_right(mistake)


@pytest.mark.parametrize("size", [SMALL_PHONE, DESKTOP], ids=["phone", "desktop"])
def test_long_names_stay_in_their_places(size: ViewportSize, named_page: Page, four: bytes) -> None:
    named_page.set_viewport_size(size)
    try_page = TryPage.open(named_page, "long")
    split_votes(named_page, LONG)
    try_page.upload(four)
    expect(try_page.spoken).to_contain_text(LONG[0])
    assert_fits(named_page)

    named_page.goto("/ui/models#long/1")
    expect(named_page.get_by_role("listitem").filter(has_text="taken for").first).to_be_visible()
    assert_fits(named_page)
