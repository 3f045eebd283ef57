"""Measures how quick and how heavy the pages for people are, in Chromium on this machine.

    python -m benchmarks.web_pages [--models-folder models] [--model digits] [--loads 15]

Each load has a fresh browser context, so nothing is cached. "first paint" is when the browser
first shows something, from the start of the navigation. "weight" is all that came over the wire,
headers included. "answer" is from the last pointer event of a stroke, drawn on the page Try, to the
frame after the last change of the answer, with the time that the drawing takes to be encoded, sent,
classified and shown. The service and the browser run on the same machine; medians and ranges.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine, end_like_ctrl_c
from tests.browser.chromium import LOOKS, running_chromium
from tests.browser.page_paths import page_paths
from tests.browser.try_page import Stroke, TryPage
from tests.service.process import service_process

_STROKES: Sequence[Stroke] = (
    ((0.30, 0.20), (0.25, 0.55)),
    ((0.25, 0.55), (0.75, 0.55)),
    ((0.62, 0.25), (0.60, 0.90)),
)
_POINTER_INTERVAL_MILLISECONDS = 16  # of a mouse on a screen of 60 frames a second
_STILL_MILLISECONDS = 400
"""An answer that has not changed for so long, with no request in flight, is the last one."""

_WATCH_ANSWER = """() => {
  const watch = (window.watch = { asked: 0, changed: 0 });
  document.addEventListener("pointermove", (event) => {
    if (event.buttons) watch.asked = event.timeStamp;
  }, true);
  const changed = () => requestAnimationFrame(() => setTimeout(() => {
    watch.changed = performance.now();
  }));
  const answer = document.querySelector('[aria-label="The answer"]');
  new MutationObserver(changed).observe(answer, { childList: true, subtree: true });
}"""
_IS_STILL = f"""() => {{
  const {{ asked, changed }} = window.watch;
  return changed > asked && performance.now() - changed > {_STILL_MILLISECONDS};
}}"""
_FIRST_PAINT = """() => new Promise((done) => {
  new PerformanceObserver((list) => {
    const [first] = list.getEntriesByName("first-paint");
    if (first) done(first.startTime);
  }).observe({ type: "paint", buffered: true });
})"""


@dataclass
class Weight:
    """Counts the requests of a page, and the bytes that came over the wire."""

    requests: int = 0
    bytes: int = 0

    def watch(self, session: CDPSession) -> None:
        """Count from now on."""
        session.on("Network.loadingFinished", self._finished)
        session.send("Network.enable")

    def _finished(self, event: dict[str, Any]) -> None:
        self.requests += 1
        self.bytes += int(event["encodedDataLength"])


@dataclass
class Loads:
    """The measurements of one page: times in milliseconds, bytes and requests of each load."""

    first_paints: list[float] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.web_pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models-folder", type=Path, default=Path("models"))
    parser.add_argument("--model", default="digits", help="of small grey images, to draw on")
    parser.add_argument("--loads", type=int, default=15, help="of each page")
    parsed = parser.parse_args(arguments)
    end_like_ctrl_c()
    options = ["--models", parsed.model]
    with (
        service_process(parsed.models_folder.resolve(), *options) as service,
        running_chromium() as browser,
    ):
        _load(browser, service.url, "/")  # starts the browser's processes
        loads = {path: Loads() for path in [*page_paths(), "/docs"]}
        for _ in range(parsed.loads):
            for path, found in loads.items():
                first_paint, weight = _load(browser, service.url, path)
                found.first_paints.append(first_paint)
                found.weights.append(weight)
        answers = [
            each for _ in range(parsed.loads) for each in _answer_strokes(browser, service.url)
        ]
    _print(loads, answers, parsed.loads)
    return 0


def _load(browser: Browser, url: str, path: str) -> tuple[float, Weight]:
    """Load a page with an empty cache; return its first paint in milliseconds, and its weight."""
    context = browser.new_context(base_url=url, **LOOKS["light"])
    page = context.new_page()
    weight = Weight()
    weight.watch(context.new_cdp_session(page))
    response = page.goto(path, wait_until="networkidle")
    assert response is not None
    assert response.ok, f"{path} answers with {response.status}"
    first_paint: float = page.evaluate(_FIRST_PAINT)
    context.close()
    return first_paint, weight


def _answer_strokes(browser: Browser, url: str) -> list[float]:
    """Draw stroke by stroke; return the milliseconds from the end of each to its answer."""
    context = browser.new_context(base_url=url, **LOOKS["light"])
    page = context.new_page()
    try_page = TryPage.open(page)
    page.evaluate(_WATCH_ANSWER)
    times = []
    for stroke in _STROKES:
        try_page.draw([stroke], _POINTER_INTERVAL_MILLISECONDS)
        times.append(_until_answered(page))
    context.close()
    return times


def _until_answered(page: Page) -> float:
    page.wait_for_load_state("networkidle")
    page.wait_for_function(_IS_STILL)
    milliseconds: float = page.evaluate("() => window.watch.changed - window.watch.asked")
    return milliseconds


def _print(loads: dict[str, Loads], answers: list[float], count: int) -> None:
    table = Table(title=f"The pages in Chromium, {count} loads each; {describe_machine()}")
    for column in ("", "median", "least", "most"):
        table.add_column(column, justify="right" if column else "left")
    for path, found in loads.items():
        table.add_row(f"{path}  first paint, ms", *_three(found.first_paints, 0))
        kilobytes = [weight.bytes / 1000 for weight in found.weights]
        table.add_row(f"{path}  weight, kB", *_three(kilobytes, 1))
        table.add_row(f"{path}  requests", *_three([each.requests for each in found.weights], 0))
    table.add_row("stroke to answer, ms", *_three(answers, 0))
    Console().print(table)


def _three(values: Sequence[float], digits: int) -> tuple[str, str, str]:
    numbers = statistics.median(values), min(values), max(values)
    first, second, third = (f"{each:.{digits}f}" for each in numbers)
    return first, second, third


if __name__ == "__main__":
    sys.exit(main())
