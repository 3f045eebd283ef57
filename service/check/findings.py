"""What a check has found, as lines for people or JSON for programs. Knows no check."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum

import orjson


class Level(IntEnum):
    """How much a finding matters; the value is the exit status that it causes."""

    FINE = 0
    WARNING = 1
    """The service starts, but does not do all that the settings ask for."""
    ERROR = 2
    """The service does not start, or does not get ready, or has no use of a setting."""


@dataclass(frozen=True)
class Finding:
    """One finding: what was examined, and a sentence that says what to do."""

    level: Level
    subject: str
    sentence: str


def fine(subject: str, sentence: str) -> Finding:
    """Return a finding that needs nothing done."""
    return Finding(Level.FINE, subject, sentence)


def warning(subject: str, sentence: str) -> Finding:
    """Return a finding that should be looked at."""
    return Finding(Level.WARNING, subject, sentence)


def error(subject: str, sentence: str) -> Finding:
    """Return a finding that has to be mended."""
    return Finding(Level.ERROR, subject, sentence)


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 2 if there is an error, else 1 if there is a warning, else 0."""
    return max((each.level for each in findings), default=Level.FINE)


def to_lines(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, errors first."""
    levels = [each.name.lower() for each in Level]
    width = max(map(len, levels))
    return "".join(
        f"{each.level.name.lower():{width}}  {each.subject}: {each.sentence}\n"
        for each in _sorted(findings)
    )


def to_json(findings: Sequence[Finding]) -> str:
    """Return one JSON object: the exit status, and the findings in the order of the lines."""
    content = {
        "status": exit_status(findings),
        "findings": [
            asdict(each) | {"level": each.level.name.lower()} for each in _sorted(findings)
        ],
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n"


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: -each.level)
