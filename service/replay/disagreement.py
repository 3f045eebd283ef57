"""How far the answers of a version differ from those in a log: counts, and quantiles."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.replay.logged_answers import LoggedAnswer
from service.shadow.difference_of_two_answers import ComparedAnswer, compare
from service.traffic_log.traffic_record import Row, encode_answer

MAX_LABEL_CHANGES = 20
"""Most pairs of labels in a report, the most frequent ones."""
MAX_EXAMPLES = 10
"""Most requests that a report names."""
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass
class Disagreement:
    """The comparison of all answers of one version and one route."""

    answers: int = 0
    same_bytes: int = 0
    labels: int = 0
    """Answers with another label."""
    with_abstention: int = 0
    """Answers of both versions that say whether they abstain."""
    abstentions: int = 0
    """Of these, those where one version abstains and the other does not."""
    abstained_logged: int = 0
    abstained_now: int = 0
    _differences: list[float] = field(default_factory=list)
    label_changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[str | None] = field(default_factory=list)
    """Requests, by their ids, whose label or abstention differs."""

    def add(self, logged: LoggedAnswer, row: Row) -> None:
        """Compare one answer with what the version says now."""
        self.answers += 1
        has_same_bytes = encode_answer(row) == logged.text
        self.same_bytes += has_same_bytes
        answer = logged.answer
        before, now = logged.abstain, row.get("abstain")
        difference = compare(ComparedAnswer(answer.label, answer.probabilities, before), row)
        if difference.label:
            self.labels += 1
            self.label_changes[answer.label, row["label"]] += 1
        if difference.abstention is not None:
            self.with_abstention += 1
            self.abstained_logged += bool(before)
            self.abstained_now += bool(now)
            self.abstentions += difference.abstention
        if (difference.label or difference.abstention) and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(logged.request_id)
        self._differences.append(
            0.0  # which the texts of float32 and float64 numbers would miss by 1e-8
            if has_same_bytes
            else difference.probability
        )

    def probability_differences(self) -> dict[str, float]:
        """Return mean and quantiles of the largest difference of a probability, answer by answer.

        There must be answers.
        """
        values = np.array(self._differences)
        quantiles = {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}
        return {"mean": float(values.mean()), **quantiles}

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "answers": self.answers,
            "same_bytes": self.same_bytes,
            "labels_differ": self.labels,
            "abstentions_compared": self.with_abstention,
            "abstentions_differ": self.abstentions,
            "abstained_logged": self.abstained_logged,
            "abstained_now": self.abstained_now,
            "probability_difference": self.probability_differences(),
            "label_changes": [
                {"logged": logged, "now": now, "answers": count}
                for (logged, now), count in self.label_changes.most_common(MAX_LABEL_CHANGES)
            ],
            "examples": self.examples,
        }
