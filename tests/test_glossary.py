"""The glossary's words and the code's are the same, and retired words stay away."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = ("model", "training", "service", "benchmarks")
HISTORY = {"experiments.md", "CHANGELOG.md", "test_glossary.py"}
"""Dated records keep the words of their day."""
RETIRED = {
    "dropout alive": "dropout active, MC dropout",
    "express road": "fast path",
    "usual road": "ASGI path",
    "express route": "FastPathRoute",
    "in hand": "in flight",
    "let go": "drain, close, release",
    "spoilt": "corrupted",
    "surprises": "entropy terms",
    "quieten": "silence_warnings",
    "stranger": "OOD images; clients that are not trusted",
    "strangeness": "OOD score",
    "Timetable": "RouteCache",
    "Entrance": "RequestHandler",
    "Tally": "DeferredMetrics, Counter",
    "go_on": "resume",
    "let_go": "drain, close, release",
    "in_hand": "in_flight",
    "takes_turn": "may_begin_request",
    "spare_the_collector": "tune_gc",
}


def documents() -> Iterator[Path]:
    for folder in (*CODE, "tests"):
        yield from (ROOT / folder).rglob("*.py")
    yield from (ROOT / "docs").rglob("*.md")
    yield from ROOT.glob("*.md")


@pytest.mark.parametrize("word", RETIRED)
def test_retired_word_is_used_nowhere(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}:{number}: write {RETIRED[word]}"
        for file in documents()
        if file.name not in HISTORY
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_every_term_of_the_glossary_is_used_in_the_code() -> None:
    table = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    terms = {
        term.strip("` ").lower()
        for cell in cells
        if cell not in {"term", "---"}
        for term in re.split(r", | / |; ", re.sub(r"\(.*?\)", "", cell))
    }
    assert len(terms) > 80
    code = "\n".join(
        file.read_text(encoding="utf-8").lower()
        for folder in CODE
        for file in (ROOT / folder).rglob("*.py")
    )
    unused = {
        term
        for term in terms
        if not re.search(r"[\s_-]*".join(map(re.escape, re.split(r"[ -]", term))), code)
    }
    assert unused == set()
