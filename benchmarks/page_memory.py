"""Measures how much memory opened pages add to a service: `python -m benchmarks.page_memory`.

Opens the pages for people, their files, what they ask for, the report and the API reference, as a
browser does, and prints the anonymous memory of the service's process before and after each step.
Every kind of prediction is made before the first measurement.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import httpx

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.processor_time import picture, running_service
from tests.browser.page_paths import page_paths

_WARMING_REQUESTS = 300
_EXAMPLES = 3
_REPEATS = 30
"""As often as a page that stays open asks for figures."""
_FILES = {
    "text/html": re.compile(r'<(?:script|link|img)[^>]* (?:src|href)="([^"#:]+)"'),
    "text/javascript": re.compile(r'(?:from|import) "(\./[^"]+)"'),
}
"""What names further files, by media type."""


class Step(NamedTuple):
    """What is opened together, and how often."""

    name: str
    paths: Sequence[str] = ()
    posted: Sequence[str] = ()
    """Paths to which an image is sent."""
    repeats: int = 1


def anonymous_kib(pid: int) -> int:
    """Return the memory of a process that no file backs, KiB (Linux)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Pss_Anon:")[2].split()[0])


def _open_with_files(client: httpx.Client, path: str, opened: set[str]) -> None:
    """Open a page, and each file that it names, as often as a browser with a cache does."""
    if path in opened:
        return
    opened.add(path)
    response = client.get(path).raise_for_status()
    names = _FILES.get(response.headers["Content-Type"].partition(";")[0])
    if names is not None:
        for name in names.findall(response.text):
            _open_with_files(client, urljoin(path, name), opened)


def _take(client: httpx.Client, step: Step) -> None:
    opened: set[str] = set()
    for path in step.paths:
        _open_with_files(client, path, opened)
    for path in step.posted:
        _classify(client, path)


def _warm(client: httpx.Client) -> None:
    for _ in range(_WARMING_REQUESTS):
        _classify(client, "/predict")
        _classify(client, "/uncertainty")
        _classify(client, "/uncertainty?samples=auto")


def _classify(client: httpx.Client, path: str) -> None:
    headers = {"Content-Type": "image/png"}
    client.post(path, content=picture(), headers=headers).raise_for_status()


def _steps(model: str) -> Sequence[Step]:
    figures = ("/models", f"/models/{model}", "/metrics/recent", f"/models/{model}/examples")
    examples = tuple(f"/models/{model}/examples/{number}" for number in range(_EXAMPLES))
    answers = ("/uncertainty?per_sample=true",)
    return (
        Step("pages and their files", page_paths()),
        Step("what pages ask for", (*figures, *examples), answers, _REPEATS),
        Step("the report", (f"/models/{model}/report",)),
        Step("the API reference", ("/docs", "/redoc", "/openapi.json")),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the memory after each step, and what all steps have added."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_memory")
    parser.add_argument("--models-folder", type=Path, default=Path("models"))
    parsed = parser.parse_args(arguments)
    end_like_ctrl_c()
    sys.stdout.write(f"{describe_machine()}\n")
    with (
        running_service(parsed.models_folder) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        _warm(client)
        first = last = anonymous_kib(service.pid)
        sys.stdout.write(f"{first / 1024:6.2f} MiB before\n")
        for step in _steps("digits"):
            for _ in range(step.repeats):
                _take(client, step)
            now = anonymous_kib(service.pid)
            sys.stdout.write(f"{(now - last) / 1024:+6.2f} MiB {step.name}\n")
            last = now
        sys.stdout.write(f"{(last - first) / 1024:+6.2f} MiB together\n")


if __name__ == "__main__":
    main()
