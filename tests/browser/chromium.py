"""Starts Chromium, and says as what device it opens a page. Knows no page."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, sync_playwright

VARIABLE = "DROPSERVE_CHROMIUM"
# Read at import: a fixture deletes every DROPSERVE_ variable before the first test.
EXECUTABLE = os.environ.get(VARIABLE) or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = f"there is no Chromium: apt-get install chromium, or name one in {VARIABLE}"

_CAMERA = "--use-fake-device-for-media-stream"  # shows a moving pattern

LOOKS: Mapping[str, Mapping[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "light",
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}
"""The options of a browser context for each way in which a page is looked at."""


@contextmanager
def running_chromium(*arguments: str) -> Iterator[Browser]:
    """Run Chromium without a window, with further command line arguments."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium refuses to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=EXECUTABLE, args=[*sandbox, _CAMERA, *arguments]
        )
        try:
            yield browser
        finally:
            browser.close()
