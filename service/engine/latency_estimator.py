"""Estimates how long inference runs take, from measurements at loading and from the runs since.

Knows no queue and no network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.dropout.sampling_methods import FIRST_BLOCK, AdaptiveSamples, FixedSamples, Sampling
from service.engine.pending_requests import PendingRequest

_MAX_COST_KEYS = 64  # every seed has its own key: its first run has to draw the masks
_MAX_INCREASE = 1.05
"""By which factor one run may raise an estimate: a run that shared the processor says little."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a model's network, as measured when it was loaded.

    Attributes:
        trunk_seconds: processor time of the trunk, per row.
        head_seconds: processor time of the head, per row and dropout sample.
        analytic_samples: the number of samples that the analytic method runs the head on; 0 where
            the method does not apply to the head.
    """

    trunk_seconds: float
    head_seconds: float
    analytic_samples: int = 0


class Rate:
    """Seconds per unit of work: the estimate from recent runs, and the fastest run so far."""

    __slots__ = ("fastest", "recent")

    def __init__(self, seconds: float) -> None:
        self.fastest = self.recent = seconds

    def observe(self, seconds: float) -> None:
        """Update both with the seconds per unit of one run."""
        self.recent = min(seconds, self.recent * _MAX_INCREASE)
        self.fastest = min(self.fastest, seconds)


class LatencyEstimator:
    """Estimates the run time of the network by rows and samples.

    It keeps two estimates: the time per row for each cost key that has run, and the rates of trunk
    and head, which also cover cost keys that have not run. Without `costs` there are no rates, and
    every estimate based on them is 0.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._seconds_per_row: dict[object, float] = {}
        self._costs = costs
        self.trunk = Rate(costs.trunk_seconds if costs else 0.0)
        """Seconds of the trunk per row."""
        self.head = Rate(costs.head_seconds if costs else 0.0)
        """Seconds of the head per row and sample."""

    def run_seconds(self, requests: Sequence[PendingRequest]) -> float:
        """Return the seconds of one run of all requests; infinite if a cost key has never run."""
        known = self._seconds_per_row.get
        if len(requests) == 1:
            return requests[0].rows * known(requests[0].cost_key, math.inf)
        return sum([request.rows * known(request.cost_key, math.inf) for request in requests])

    def row_seconds(self, sampling: Sampling | None) -> float:
        """Return the expected seconds of one row; for adaptive sampling, the maximum."""
        if sampling is None:
            return self.trunk.recent
        return self.trunk.recent + self.head.recent * self._max_samples(sampling)

    def min_row_seconds(self, sampling: Sampling | None) -> float:
        """Return the seconds of one row at the fastest rates so far.

        Adaptive sampling is taken to decide every label in its first block.
        """
        if sampling is None:
            return self.trunk.fastest
        samples = self._max_samples(sampling)
        if isinstance(sampling, AdaptiveSamples):
            samples = min(samples, FIRST_BLOCK)
        return self.trunk.fastest + self.head.fastest * samples

    def samples_within_time(self, seconds: float) -> int:
        """Return how many samples of one row fit into a time, at the fastest rates so far."""
        if not self.head.fastest:
            return 0
        return max(0, int((seconds - self.trunk.fastest) / self.head.fastest))

    def observe(self, requests: Sequence[PendingRequest], rows: int, seconds: float) -> None:
        """Update the time per row from a run of `rows` rows, if all had one cost key."""
        cost_key = requests[0].cost_key
        if cost_key is None or (
            len(requests) > 1 and any(request.cost_key != cost_key for request in requests)
        ):
            return
        if len(self._seconds_per_row) > _MAX_COST_KEYS:
            self._seconds_per_row.clear()
        self._seconds_per_row[cost_key] = seconds / rows

    def observe_rates(
        self,
        requests: Sequence[PendingRequest],
        rows: int,
        trunk_seconds: float,
        head_seconds: float,
    ) -> None:
        """Update the rates from a run that was long enough to measure."""
        if self._costs is None:
            return
        self.trunk.observe(trunk_seconds / rows)
        sampling = requests[0].sampling
        if isinstance(sampling, FixedSamples) and all(
            request.sampling == sampling for request in requests
        ):
            self.head.observe(head_seconds / (rows * sampling.samples))

    def _max_samples(self, sampling: Sampling) -> int:
        if isinstance(sampling, FixedSamples):
            return sampling.samples
        if isinstance(sampling, AdaptiveSamples):
            return sampling.max_samples
        return self._costs.analytic_samples if self._costs else 0
