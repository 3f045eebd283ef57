"""Checks SECURITY.md: its tables list every limit with its default."""

import re

from model.images.occlusion import MAX_CELLS
from service.api.schemas import MAX_SAMPLE_PROBABILITIES
from service.edge.forwarded_headers import MAX_PROXIES
from service.engine.occlusion_runs import MAX_PART_BYTES
from service.http.query_limits import MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS
from service.http.rate_table_of_all_workers import SLOTS
from service.observability.log_writer import FLUSH_SECONDS, MAX_WAITING_BYTES
from service.settings import ServiceSettings
from service.traffic_log.traffic_log import MAX_WAITING_BYTES as MAX_WAITING_TRAFFIC_BYTES
from tests.conftest import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NOT_LIMITS = {"models_source_seconds", "traffic_log_segment_seconds", "watch_seconds"}
"""Settings that are named like limits: how often something is done."""


def limits() -> dict[str, str]:
    """Return the flag and default of each setting that limits clients we do not trust."""
    return {
        f"--{name.replace('_', '-')}": str(field.default)
        for name, field in ServiceSettings.model_fields.items()
        if name not in NOT_LIMITS
        and ("max_" in name or "_timeout_" in name or name.endswith(("_seconds", "_per_second")))
    }


def test_security_page_lists_every_limit_with_its_default_and_no_other() -> None:
    assert dict(re.findall(r"^\| `(--[a-z-]+)` \| `(\S+)` \|", PAGE, re.MULTILINE)) == limits()


def test_security_page_lists_the_fixed_limits() -> None:
    assert f"are remembered | {SLOTS:,}, in 400 kB |" in PAGE
    assert f"one behind the other | {MAX_PROXIES} |" in PAGE
    assert f"| query | {MAX_QUERY_BYTES:,} bytes, {MAX_QUERY_PARAMETERS} parameters |" in PAGE
    assert f"classes | {MAX_SAMPLE_PROBABILITIES:,} |" in PAGE
    assert f"| {1 + MAX_CELLS**2}, made in parts of {MAX_PART_BYTES // 2**20} MiB |" in PAGE
    assert f"| {MAX_WAITING_BYTES // 2**20} MiB | they are dropped" in PAGE
    assert f"| {FLUSH_SECONDS:.0f} second |" in PAGE
    assert f"| {MAX_WAITING_TRAFFIC_BYTES // 2**20} MiB | they are dropped and counted" in PAGE


def test_security_page_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_security_page_asks_for_private_reports() -> None:
    assert "private security advisory of the repository" in " ".join(PAGE.split())
