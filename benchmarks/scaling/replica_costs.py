"""The processor time that requests cost a replica, from which everything else is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RunCost:
    """A run of the network for n images takes `fixed + n * row` seconds of one core."""

    fixed: float
    row: float

    def seconds(self, rows: int) -> float:
        """Return the duration of a run of `rows` images."""
        return self.fixed + rows * self.row

    @classmethod
    def fit(cls, rows: Sequence[int], seconds: Sequence[float]) -> "RunCost":
        """Fit both parts to measured runs by least squares of the relative errors."""
        counts, times = np.asarray(rows, float), np.asarray(seconds, float)
        columns = np.stack([1 / times, counts / times], axis=1)
        (fixed, row), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
        return cls(max(0.0, float(fixed)), float(row))


@dataclass(frozen=True)
class ReplicaCosts:
    """What requests of one image cost a replica with one core, in seconds of processor time."""

    turn: float
    """Each turn of the event loop that finds requests: waking up, and asking for events."""
    request: float
    """Reading, parsing and validating a request, and writing its response."""
    run: RunCost
    batch_rows: int
    """The most images of a run."""

    def least_seconds(self) -> float:
        """Return what a request costs where turns and runs are shared by very many."""
        return self.request + self.run.seconds(self.batch_rows) / self.batch_rows
