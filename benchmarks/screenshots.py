"""Makes the pictures of the pages for the docs, in Chromium, from a running service.

    python -m benchmarks.screenshots [--models-folder models] [--output docs/images]

The model is the digits. The clear answer is a drawn four; the doubtful one is the test image with
the highest entropy of those that look usual; the blank is the page's own example. The other pages
are shown after a minute of requests of all kinds. Sizes, scale and colours are fixed, so that
pictures change only where the pages or the model do; files are WebP without loss.
"""

import argparse
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from benchmarks.machine import end_like_ctrl_c
from tests.browser.chromium import LOOKS, running_chromium
from tests.browser.page_paths import page_paths
from tests.browser.try_page import FOUR, TryPage
from tests.pictures import Pixels, encode, form
from tests.service.process import ServiceProcess, service_process
from training.config import DatasetConfig
from training.data.dataset import load_dataset

_IMAGES_PER_REQUEST = 60
_PAUSE_SECONDS = 0.1
"""Between two requests, on average; at random, as requests of people are."""


@dataclass(frozen=True)
class Pictures:
    """Takes pictures of the pages of one service."""

    browser: Browser
    url: str
    folder: Path

    @contextmanager
    def taken(self, name: str, look: str) -> Iterator[Page]:
        """Yield a new page, and write what it shows at the end of the block as NAME.webp."""
        context = self.browser.new_context(
            base_url=self.url, reduced_motion="reduce", **LOOKS[look]
        )
        page = context.new_page()
        yield page
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement.blur()")
        page.wait_for_load_state("networkidle")
        is_whole = look != "phone"  # where the page is several screens long
        png = page.screenshot(full_page=is_whole, animations="disabled", caret="hide")
        image = Image.open(io.BytesIO(png)).convert("RGB")
        image.save(self.folder / f"{name}.webp", lossless=True, quality=100, method=6)
        context.close()


def main(arguments: list[str] | None = None) -> int:
    """Take all pictures; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models-folder", type=Path, default=Path("models"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--port", type=int, default=8000, help="of the service; it is shown")
    parser.add_argument("--traffic-seconds", type=float, default=60, help="before the other pages")
    parsed = parser.parse_args(arguments)
    end_like_ctrl_c()
    models_folder = parsed.models_folder.resolve()
    parsed.output.mkdir(parents=True, exist_ok=True)
    test_images = load_dataset(DatasetConfig(data="digits")).test.images[:, 0]
    with (
        service_process(models_folder, "--models", "digits", port=parsed.port) as service,
        running_chromium() as browser,
    ):
        pictures = Pictures(browser, service.url, parsed.output)
        doubtful = encode(_most_doubtful(service, test_images))
        for look in LOOKS:
            _take_drawing(pictures, f"try-sure-{look}", look)
        _take_file(pictures, "try-unsure", doubtful)
        _take_example(pictures, "try-blank", "Blank")
        _send_traffic(service, test_images, parsed.traffic_seconds)
        for path in page_paths()[1:]:
            _take_page(pictures, path.rpartition("/")[2], path)
    for file in sorted(parsed.output.glob("*.webp")):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")  # noqa: T201
    return 0


def _most_doubtful(service: ServiceProcess, images: Pixels) -> Pixels:
    """Return the image with the highest predictive entropy among those that look usual."""
    predictions = [
        each
        for start in range(0, len(images), _IMAGES_PER_REQUEST)
        for each in _ask(service, images[start : start + _IMAGES_PER_REQUEST])
    ]
    doubts = [
        -1.0 if each["abstain_because"] in {"unusual", "both"} else each["predictive_entropy"]
        for each in predictions
    ]
    doubtful: Pixels = images[int(np.argmax(doubts))]
    return doubtful


def _ask(service: ServiceProcess, images: Pixels) -> list[dict[str, Any]]:
    files = form(*map(encode, images))
    response = httpx.post(f"{service.url}/uncertainty", files=files).raise_for_status()
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


def _take_drawing(pictures: Pictures, name: str, look: str) -> None:
    with pictures.taken(name, look) as page:
        try_page = TryPage.open(page)
        try_page.draw(FOUR)
        expect(try_page.answer).to_contain_text("all say 4")
        try_page.answer.evaluate("(answer) => answer.scrollIntoView()")


def _take_file(pictures: Pictures, name: str, image: bytes) -> None:
    with pictures.taken(name, "light") as page:
        try_page = TryPage.open(page)
        with try_page.answered():
            try_page.upload(image, name="digit.png")


def _take_example(pictures: Pictures, name: str, example: str) -> None:
    with pictures.taken(name, "light") as page:
        try_page = TryPage.open(page)
        with try_page.answered():
            try_page.example(example).click()


def _take_page(pictures: Pictures, name: str, path: str) -> None:
    with pictures.taken(name, "light") as page:
        response = page.goto(path)
        assert response is not None
        assert response.ok, f"{path} answers with {response.status}"


def _send_traffic(service: ServiceProcess, images: Pixels, seconds: float) -> None:
    """Send test images, and after half of the time also noise and files that are no images."""
    generator = np.random.default_rng(0)
    start = time.monotonic()
    with httpx.Client(base_url=service.url) as client:
        while (passed := time.monotonic() - start) < seconds:
            count = int(generator.integers(1, 9))
            chosen = list(images[generator.integers(0, len(images), count)])
            is_strange = passed > seconds / 2
            if is_strange:
                chosen[0] = generator.integers(0, 256, chosen[0].shape, dtype=np.uint8)
            client.post("/uncertainty", files=form(*map(encode, chosen)))
            client.post("/predict", files=form(encode(chosen[-1])))
            if is_strange and count == 1:
                client.post("/predict", files=form(b"not an image"))
            time.sleep(float(generator.exponential(_PAUSE_SECONDS)))


if __name__ == "__main__":
    sys.exit(main())
