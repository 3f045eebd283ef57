"""The fixtures find what a page must not do; where they did not, every other test would be vain."""

import pytest
from playwright.sync_api import Page

from tests.browser.accessibility import assert_accessible
from tests.browser.findings import Findings

pytestmark = pytest.mark.browser

WRONGS = {
    "console error": "console.error('a cross word')",
    "uncaught": "setTimeout(() => { throw new Error('nobody caught me') })",
    "Content Security Policy": "document.body.setAttribute('style', 'color: red')",
    "another host": "new Image().src = 'http://127.0.0.1:9/pixel.png'",
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_wrong_of_a_page_is_found(wrong: str, page: Page, findings: Findings) -> None:
    page.goto("/")
    assert findings.found == []
    two_frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(f"() => {{ {WRONGS[wrong]}; return {two_frames}; }}")
    assert any(wrong in each for each in findings.found), findings.found
    findings.found.clear()


def test_page_that_axe_finds_fault_with_is_not_accessible(page: Page) -> None:
    page.goto("/")
    page.evaluate("() => document.querySelector('main').append(document.createElement('button'))")
    with pytest.raises(AssertionError, match="critical button-name"):
        assert_accessible(page)
