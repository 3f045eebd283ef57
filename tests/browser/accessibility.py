"""Checks a page with axe-core, as a person with a screen reader or little sight would need it."""

from collections.abc import Collection
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

_IMPACTS = {"serious", "critical"}


def assert_accessible(page: Page, excepted: Collection[str] = ()) -> None:
    """Assert that axe-core finds nothing serious or critical in the page as it is now.

    excepted: the rules that the page breaks, all of them.
    """
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    serious = [each for each in violations if each["impact"] in _IMPACTS]
    unexpected = [_sentence(each) for each in serious if each["id"] not in excepted]
    assert not unexpected, "\n".join(unexpected)
    assert {each["id"] for each in serious} == set(excepted), "an exception is needed no more"


def _sentence(violation: dict[str, Any]) -> str:
    places = "; ".join(
        f"{each['html'][:120]} ({each['failureSummary']})" for each in violation["nodes"]
    )
    return f"{violation['impact']} {violation['id']}: {violation['help']}: {places}"
