"""Judges what a number of right answers can say: its interval, and whether it beats guessing.

Guessing is to answer the commonest class for every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from model.uncertainty.binomial_interval import wilson_interval
from training.data.excluded_files import counted

LEVEL = 0.05
"""Chance that guesses are taken for more than guesses."""


@dataclass(frozen=True)
class RightAnswers:
    """How many of some labelled images a network answers rightly."""

    right: int
    images: int
    commonest: int
    """Images of the commonest class."""

    @classmethod
    def of_counts(cls, counts: Sequence[Sequence[int]]) -> "RightAnswers":
        """Read a confusion matrix [K, K]: counts by true class (row) and predicted (column)."""
        matrix = np.array(counts, np.int64)
        return cls(int(matrix.trace()), int(matrix.sum()), int(matrix.sum(axis=1).max()))

    @property
    def beats_guessing(self) -> bool:
        """Whether guesses would have at most the chance LEVEL to be right as often (binomial)."""
        guess = self.commonest / self.images
        test = binomtest(self.right, self.images, guess, alternative="greater")
        return bool(test.pvalue <= LEVEL)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, 0..1 (Wilson 1927)."""
        found = wilson_interval(self.right, self.images)
        assert found is not None, "there is at least one image"
        return found.low, found.high

    @property
    def remark(self) -> str | None:
        """A sentence where the network does not beat guessing on these images; else None."""
        if self.beats_guessing:
            return None
        return (
            f"No better than guessing, as far as {counted(self.images, 'test image')} can tell: "
            f"{self.right / self.images:.1%} are right, and {self.commonest / self.images:.1%} "
            "would be with the commonest class as every answer."
        )
