"""By how much two answers to one image differ: what a shadow and a replay both count."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from service.traffic_log.traffic_record import MAX_LOGGED_CLASSES, Row, likeliest


class ComparedAnswer(NamedTuple):
    """What of an answer is compared with that of another version."""

    label: str
    probabilities: Mapping[str, Any]
    """Of the likeliest classes, as the traffic log has them."""
    abstain: bool | None
    """None where that was not asked, or the version is uncalibrated."""

    @classmethod
    def of(cls, row: Row) -> "ComparedAnswer":
        """Take what is compared from an answer."""
        return cls(row["label"], likeliest(row["probabilities"]), row.get("abstain"))


class AnswerDifference(NamedTuple):
    """The difference of two answers."""

    label: bool
    """Whether the labels differ."""
    abstention: bool | None
    """Whether one version abstains and the other does not; None where one does not say."""
    probability: float
    """See `largest_difference`."""


def compare(before: ComparedAnswer, now: Row) -> AnswerDifference:
    """Return by how much the answer of a version differs from the one that was given."""
    abstain = now.get("abstain")
    unknown = before.abstain is None or abstain is None
    return AnswerDifference(
        now["label"] != before.label,
        None if unknown else bool(abstain) != bool(before.abstain),
        largest_difference(before.probabilities, now["probabilities"]),
    )


def largest_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """Return the largest difference of a class's probability, over the likeliest of both, 0..1.

    A class that a version does not have counts as probability 0. Where `before` has no room for a
    class that is among the likeliest now, its probability then was at most the least in `before`.
    """
    most_then = min(before.values()) if len(before) >= MAX_LOGGED_CLASSES else 0.0
    differences = [abs(float(value) - float(now.get(name, 0.0))) for name, value in before.items()]
    differences += [
        float(value) - float(most_then)
        for name, value in likeliest(now).items()
        if name not in before
    ]
    return max(0.0, *differences)
