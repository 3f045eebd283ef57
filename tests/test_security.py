"""SECURITY.md is held true: every limit stands in its table, with the default that it has."""

import re

from service.http.queries import MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS
from service.observability.log_writer import FLUSH_SECONDS, MAX_WAITING_BYTES
from service.settings import ServiceSettings
from tests.conftest import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NO_LIMITS = {"watch_seconds"}
"""Named like one: how often something is done."""


def limits() -> dict[str, str]:
    """Each setting that bounds what a stranger may take: its flag and its default."""
    return {
        f"--{name.replace('_', '-')}": str(field.default)
        for name, field in ServiceSettings.model_fields.items()
        if name not in NO_LIMITS
        and (name.startswith("max_") or "_timeout_" in name or name.endswith("_seconds"))
    }


def test_every_limit_is_told_with_its_default_and_no_other() -> None:
    assert dict(re.findall(r"^\| `(--[a-z-]+)` \| `(\S+)` \|", PAGE, re.MULTILINE)) == limits()


def test_the_fixed_limits_are_told() -> None:
    assert f"| query | {MAX_QUERY_BYTES:,} bytes, {MAX_QUERY_PARAMETERS} parameters |" in PAGE
    assert f"| {MAX_WAITING_BYTES // 2**20} MiB | they are dropped" in PAGE
    assert f"| {FLUSH_SECONDS:.0f} second |" in PAGE


def test_every_link_of_the_page_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_report_is_private() -> None:
    assert "private security advisory of the repository" in " ".join(PAGE.split())
