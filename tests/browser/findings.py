"""Records what a page must never do: errors, breaches of its policy, requests to other hosts."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Request, WebError

_FAILED_REQUEST = "Failed to load resource"
"""How Chromium's console message begins that reports a response of 400 or above, or none."""
_IN_THE_PAGE = {"blob", "data"}
"""Schemes of addresses that need no host."""


@dataclass
class Findings:
    """What the pages of one browser context did wrong, as sentences."""

    origins: set[str] = field(default_factory=set)
    """The servers that the pages may ask, each `http://HOST:PORT`."""
    requests_may_fail: bool = False
    """Whether a test provokes responses that are errors, which Chromium reports by itself."""
    found: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext, origin: str) -> None:
        """Record what all pages of a context do wrong from now on; they may ask one server."""
        self.origins.add(origin)
        context.on("console", self._console)
        context.on("weberror", self._uncaught)
        context.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        is_expected = self.requests_may_fail and message.text.startswith(_FAILED_REQUEST)
        if message.type in {"error", "warning"} and not is_expected:
            self.found.append(f"console {message.type}: {message.text}")

    def _uncaught(self, error: WebError) -> None:
        self.found.append(f"uncaught: {error.error}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if parts.scheme not in _IN_THE_PAGE and origin not in self.origins:
            self.found.append(f"another host: {request.url}")
