"""Fixtures: a real server of two models, Chromium, and a page of it whose errors are found."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.chromium import EXECUTABLE, LOOKS, MISSING, running_chromium
from tests.browser.findings import Findings
from tests.browser.hundred_classes import train_hundred_classes
from tests.browser.try_page import TryPage
from tests.bundles import copy_bundle
from tests.pictures import encode
from tests.service.process import ServiceProcess, service_process
from training.data.dataset import Split

ACTION_TIMEOUT_SECONDS = 15
"""How long an action waits for its element; an answer of the service takes milliseconds."""
MAX_BODY_BYTES = 200_000
MAX_SAMPLES = 512

OpenContext = Callable[..., BrowserContext]


@pytest.fixture(scope="session")
def two_models(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `digits/1`, which was trained, and `hundred/1`, of 100 classes."""
    folder = tmp_path_factory.mktemp("two-models")
    copy_bundle(bundle_folder, folder / "models")
    train_hundred_classes(folder, folder / "models")
    return folder / "models"


@pytest.fixture(scope="session")
def server(two_models: Path) -> Iterator[ServiceProcess]:
    """The running service; tests share it and change no model."""
    limits = ["--max-body-bytes", str(MAX_BODY_BYTES), "--max-samples", str(MAX_SAMPLES)]
    with service_process(two_models, "--default-model", "digits", *limits) as process:
        yield process


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.fail(MISSING)
    with running_chromium() as chromium:
        yield chromium


@pytest.fixture
def findings() -> Iterator[Findings]:
    """What the pages of the test did wrong; the test fails at its end if that is anything."""
    findings = Findings()
    yield findings
    assert findings.found == []


@pytest.fixture
def page_may_ask_in_vain(findings: Findings) -> None:
    """For tests that provoke responses that are errors, or no response."""
    findings.requests_may_fail = True


@pytest.fixture
def open_context(
    browser: Browser, server: ServiceProcess, findings: Findings
) -> Iterator[OpenContext]:
    """Return a function that opens a new context, with a look of `LOOKS`, on a server.

    Its pages take addresses relative to the server; all of them are watched.
    """
    contexts = []

    def open_one(look: str = "light", url: str = server.url) -> BrowserContext:
        context = browser.new_context(base_url=url, reduced_motion="reduce", **LOOKS[look])
        context.set_default_timeout(1000 * ACTION_TIMEOUT_SECONDS)
        findings.watch(context, url)
        contexts.append(context)
        return context

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def four(held_out: Split) -> bytes:
    """A held-out four as a PNG file."""
    return encode(held_out.images[list(held_out.labels).index(4), 0])


@pytest.fixture
def try_page(page: Page) -> TryPage:
    """The page Try, with the digits."""
    return TryPage.open(page)


@pytest.fixture
def page(open_context: OpenContext) -> Page:
    """A new page of a desktop browser, light."""
    return open_context("light").new_page()


@pytest.fixture
def dark_page(open_context: OpenContext) -> Page:
    return open_context("dark").new_page()


@pytest.fixture
def phone_page(open_context: OpenContext) -> Page:
    """A new page of a telephone with a touch screen, 390 x 844."""
    return open_context("phone").new_page()


@pytest.fixture(params=LOOKS)
def any_page(open_context: OpenContext, request: pytest.FixtureRequest) -> Page:
    """A new page in each look."""
    return open_context(request.param).new_page()
