"""The page /ui/monitor: what it shows, that it recovers, and that everybody can use it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.accessibility import assert_accessible
from tests.browser.layout import assert_fits
from tests.service.process import ServiceProcess

pytestmark = pytest.mark.browser

RECENT = "**/metrics/recent"
PATH = "/ui/monitor"
RECORDED_MILLISECONDS = 20_000
"""An interval of 5 seconds has to end, and the page asks every 5 seconds."""
Recent = dict[str, Any]


def change_answers(page: Page, change: Callable[[Recent], None]) -> None:
    """Let the page see an answer of the service that was changed, as often as it asks."""
    recent = page.request.get("/metrics/recent").json()
    change(recent)
    page.route(RECENT, lambda route: route.fulfill(json=recent))


def show_traffic(recent: Recent) -> None:
    """Let it be that requests came in the newest interval."""
    window = {"answered": 40, "refused": 8, "failed": 2}
    requests = recent["requests"]
    for name, count in window.items():
        requests[name][-1] = count
    recent["workers"] = [1] * len(recent["workers"])
    percentiles = {"p50": 0.002, "p90": 0.012, "p99": 0.3}
    requests["windows"] = [window | {"seconds": percentiles}] * 3
    for name, value in percentiles.items():
        requests["seconds"][name][-1] = value
    recent["routes"] = [{"route": "/predict", "for_operators": False, **requests}]
    for each in recent["versions"]:
        each["images"][-1] = 30
        edges = each["edges"].items()
        counts = {name: [10, 20] + [0] * (len(values) - 1) for name, values in edges}
        abstentions = {"unsure": 3, "unusual": 6, "both": 0}
        view = {"images": 30, "abstentions": abstentions, "histograms": counts}
        each["windows"] = [view] * 3


def feedback() -> dict[str, Any]:
    """Return what 1,200 true labels say of a version whose coverage is broken."""
    share = {"estimate": -0.031, "low": -0.05, "high": 0.012}
    test = {"promise": "coverage", "sets": "thr", "coverage": 0.9, "labels": 1200, "missed": 300}
    test |= {"missed_share": share | {"estimate": 0.25}, "log_wealth": 9.0, "p_value": 1e-4}
    test |= {"alarm": {"label": 1100, "time": "2026-01-01T12:00:00.000Z"}}
    shares = dict.fromkeys(("accuracy", "coverage", "answered", "error_among_answered"))
    return shares | {"overconfidence": share, "labels": 1200, "alarm_rate": 0.01, "tests": [test]}


def show_growing_traffic(page: Page) -> None:
    """Open the page with 51 requests, and with one more at each time that it asks."""
    recent = page.request.get("/metrics/recent").json()
    show_traffic(recent)
    recent["routes"].append(recent["routes"][0] | {"route": "/metrics", "for_operators": True})
    recent["versions"][0]["feedback"] = feedback()

    def answer_with_one_more(route: Route) -> None:
        recent["requests"]["windows"][0]["answered"] += 1
        route.fulfill(json=recent)

    page.clock.install()
    page.route(RECENT, answer_with_one_more)
    page.goto(PATH)
    expect(page.locator("#tiles")).to_contain_text("51 in all")


def forget_traffic(recent: Recent) -> None:
    nothing = {"answered": 0, "refused": 0, "failed": 0}
    for window in recent["requests"]["windows"]:
        window.update(nothing)


def test_request_is_shown_within_seconds(server: ServiceProcess, page: Page, four: bytes) -> None:
    assert server.post("/uncertainty?model=digits", four, "image/png").status_code == 200
    page.goto(PATH)
    expect(page.locator("#routes")).to_contain_text("/uncertainty", timeout=RECORDED_MILLISECONDS)
    expect(page.locator("#state-text")).to_have_text("Live")
    page.locator("#version").select_option("digits 1")
    for title in ("Entropy", "Mutual information", "Typicality", "Set size"):
        chart = page.get_by_role("img", name=re.compile(f"^{title}, .*of the validation images"))
        expect(chart).to_be_visible()


def test_page_without_requests_says_how_to_make_one(page: Page, server: ServiceProcess) -> None:
    change_answers(page, forget_traffic)
    page.goto(PATH)
    expect(page.get_by_role("heading", name="No request yet")).to_be_visible()
    expect(page.locator("#example")).to_have_text(
        f"curl -F file=@image.png {server.url}/uncertainty"
    )
    page.get_by_role("link", name="Try an image").click()
    expect(page).to_have_url(f"{server.url}/")


@pytest.mark.usefixtures("page_may_ask_in_vain")
def test_page_says_that_the_service_is_silent_and_recovers(page: Page) -> None:
    page.clock.install()
    change_answers(page, show_traffic)
    page.goto(PATH)
    expect(page.locator("#state-text")).to_have_text("Live")
    page.unroute(RECENT)
    page.route(RECENT, lambda route: route.abort())
    page.clock.run_for(6_000)
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    expect(page.locator("#state-text")).to_have_text("No answer")
    expect(page.locator("#tiles")).to_contain_text("50 in all")  # what was known stays
    page.unroute(RECENT)
    page.clock.run_for(3_000)
    expect(page.locator("#state-text")).to_have_text("Live")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_paused_page_asks_no_more(page: Page) -> None:
    page.clock.install()
    page.goto(PATH)
    expect(page.locator("#state-text")).to_have_text("Live")
    page.get_by_role("button", name="Pause").press("Enter")
    expect(page.locator("#state-text")).to_contain_text("Paused")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(60_000)
    assert asked == []
    page.get_by_role("button", name="Pause").press("Enter")
    page.clock.run_for(1_000)
    expect(page.locator("#state-text")).to_have_text("Live")


def test_alarm_and_refused_version_stand_first_as_text(page: Page) -> None:
    def raise_alarm(recent: Recent) -> None:
        show_traffic(recent)
        drift = recent["versions"][0]["drift"]
        moment = {"image": 321, "time": "2026-01-01T12:00:00.000Z"}
        drift["alarm"] = True
        drift["confidence"] |= {"alarm": False}
        drift["typicality"] |= {"alarm": True, "log_wealth": 7.0, "raised": moment}
        reason = "a/2/head.onnx differs; <img src=x> copy it again."
        recent["refused"] = [{"name": "a", "version": "2", "reason": reason}]

    change_answers(page, raise_alarm)
    page.goto(PATH)
    alarms = page.get_by_role("region", name="Alarms").locator("p")
    expect(alarms).to_have_count(2)
    expect(alarms.first).to_contain_text("By their typicality, the images that arrive are not like")
    expect(alarms.last).to_contain_text("<img src=x> copy it again.")
    expect(page.locator("#drift")).to_contain_text("alarm since Jan 1, 2026")
    expect(page.locator("#drift")).to_contain_text("image 321")


def test_true_labels_and_broken_promises_are_shown(page: Page) -> None:
    def label(recent: Recent) -> None:
        show_traffic(recent)
        recent["versions"][0]["feedback"] = feedback()

    change_answers(page, label)
    page.goto(PATH)
    expect(page.get_by_role("region", name="Alarms")).to_contain_text("coverage 0.9 (thr) is not")
    section = page.locator("#feedback")
    expect(section).to_contain_text("1,200 labels")
    expect(section.get_by_role("row", name=re.compile("^Overconfidence"))).to_contain_text("-3.1")
    expect(section).to_contain_text("alarm since label 1,100")


@pytest.mark.parametrize(
    "control",
    [
        "role=region[name='Drift tests']",
        "role=region[name='Routes']",
        "role=button[name='/predict']",
        "summary:text('Pages, health and metrics')",
        "role=region[name='What true labels say']",
    ],
)
def test_new_numbers_leave_the_focus_where_it_is(page: Page, control: str) -> None:
    show_growing_traffic(page)
    page.locator(control).focus()
    page.clock.run_for(6_000)
    expect(page.locator("#tiles")).to_contain_text("52 in all")
    expect(page.locator(control)).to_be_focused()


def test_new_numbers_leave_a_table_where_it_was_scrolled_to(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    show_growing_traffic(page)
    table = page.get_by_role("region", name="Routes")
    assert table.evaluate("(table) => { table.scrollLeft = 20; return table.scrollLeft; }") == 20
    page.clock.run_for(6_000)
    expect(page.locator("#tiles")).to_contain_text("52 in all")
    assert table.evaluate("(table) => table.scrollLeft") == 20


def test_charts_are_read_with_the_keyboard(page: Page) -> None:
    change_answers(page, show_traffic)
    page.goto(PATH)
    chart = page.locator("#rate-chart").get_by_role("img", name=re.compile("^Requests, a second"))
    expect(chart).to_have_accessible_name(re.compile("now: answered 8, lowest"))
    chart.press("ArrowLeft")
    expect(page.locator("#rate-chart figcaption")).to_contain_text("5 s ago")
    chart.press("End")
    expect(page.locator("#rate-chart figcaption")).to_contain_text("answered8")
    page.locator("#rate-chart summary").press("Enter")
    row = page.locator("#rate-chart tbody tr").first
    expect(row).to_have_text(re.compile("^now8"))


def test_window_and_route_are_chosen_with_the_keyboard(page: Page) -> None:
    change_answers(page, show_traffic)
    page.goto(PATH)
    page.get_by_role("button", name="1 min", exact=True).press("Enter")
    expect(page.locator("#rate-chart")).to_contain_text("60 s")
    page.get_by_role("button", name="/predict").press("Enter")
    expect(page.locator("#route")).to_have_value("/predict")


def test_page_is_accessible_in_every_look(any_page: Page) -> None:
    change_answers(any_page, show_traffic)
    any_page.goto(PATH)
    expect(any_page.locator("#tiles")).to_contain_text("50 in all")
    for table in any_page.locator("summary").all():
        table.click()
    assert_accessible(any_page)
    assert_fits(any_page)
