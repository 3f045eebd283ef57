"""What the true labels say of a version: accuracy, coverage, error of the answered, calibration.

Every figure is a share with its 95 % interval, from counts. Knows no database.
"""

from dataclasses import dataclass, field, fields
from typing import Self

from model.uncertainty.binomial_interval import Interval, wilson_interval
from model.uncertainty.prediction_sets import SetKind
from model.uncertainty.sequential_test_of_coverage_and_risk import PromisedRateTest, worst_alarm
from service.feedback.remembered_answer import AnsweredImage

BINS = 15
"""Bins of equal width, by confidence, for the expected calibration error (Guo et al. 2017)."""


@dataclass
class LabelCounts:
    """Counts of labelled images whose confidences lie in one bin, or in any."""

    labels: int = 0
    correct: int = 0
    confidence: float = 0.0
    """Sum over the images."""
    decided: int = 0
    """Images of answers that say whether they abstain."""
    answered: int = 0
    """Of these, images that were not abstained from."""
    answered_wrong: int = 0
    sets: int = 0
    """Images of answers with prediction sets."""
    covered: int = 0
    """Of these, images whose set has the true class."""
    set_classes: int = 0
    """Classes in all sets together."""

    @classmethod
    def of(cls, image: AnsweredImage, truth: int) -> Self:
        """Return what one labelled image adds."""
        is_correct = image.label == truth
        is_answered = image.abstained is False
        members = image.prediction_set
        return cls(
            labels=1,
            correct=is_correct,
            confidence=image.confidence,
            decided=image.abstained is not None,
            answered=is_answered,
            answered_wrong=is_answered and not is_correct,
            sets=members is not None,
            covered=members is not None and truth in members,
            set_classes=0 if members is None else len(members),
        )

    def add(self, other: "LabelCounts", sign: int = 1) -> None:
        """Add other counts; sign: -1 takes them away."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))


COUNTS = tuple(each.name for each in fields(LabelCounts))


def bin_of(confidence: float) -> int:
    """Return the bin of a confidence, 0..BINS - 1."""
    return min(int(confidence * BINS), BINS - 1)


@dataclass(frozen=True)
class CoverageTest:
    """The test of the prediction sets of one kind and coverage."""

    sets: SetKind
    coverage: float
    test: PromisedRateTest


@dataclass(frozen=True)
class VersionFigures:
    """The counts of one version by bin, and the tests of what it promises."""

    bins: dict[int, LabelCounts] = field(default_factory=dict)
    risk: PromisedRateTest | None = None
    """None: no label yet of an answer that promised a risk and did not abstain."""
    coverages: tuple[CoverageTest, ...] = ()

    @property
    def total(self) -> LabelCounts:
        """The counts of all bins together."""
        total = LabelCounts()
        for counts in self.bins.values():
            total.add(counts)
        return total

    def shares(self) -> dict[str, Interval | None]:
        """Return each share with its interval; None: nothing to count it on."""
        total = self.total
        return {
            "accuracy": wilson_interval(total.correct, total.labels),
            "coverage": wilson_interval(total.covered, total.sets),
            "answered": wilson_interval(total.answered, total.decided),
            "error_among_answered": wilson_interval(total.answered_wrong, total.answered),
            "overconfidence": self._overconfidence(total),
        }

    @property
    def set_size(self) -> float | None:
        """How many classes a prediction set has, on average; None: no set."""
        total = self.total
        return total.set_classes / total.sets if total.sets else None

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error; None: no label. Few labels make it too high."""
        total = self.total.labels
        gaps = sum(abs(each.correct - each.confidence) for each in self.bins.values())
        return gaps / total if total else None

    def alarms(self) -> dict[str, PromisedRateTest | None]:
        """Return the test of each promise, that of the coverages with an alarm or the worst one."""
        coverage = worst_alarm(each.test for each in self.coverages)
        return {"max_risk": self.risk, "coverage": coverage}

    @property
    def broken_promises(self) -> frozenset[str]:
        """The promises with an alarm."""
        return frozenset(
            promise
            for promise, test in self.alarms().items()
            if test is not None and test.alarm is not None
        )

    @staticmethod
    def _overconfidence(total: LabelCounts) -> Interval | None:
        """Return mean confidence minus accuracy, with the interval of the accuracy.

        Given the confidences, the number of right labels varies no more than a binomial one.
        """
        accuracy = wilson_interval(total.correct, total.labels)
        if accuracy is None:
            return None
        mean = total.confidence / total.labels
        return Interval(mean - accuracy.estimate, mean - accuracy.high, mean - accuracy.low)
