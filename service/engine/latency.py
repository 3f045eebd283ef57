"""How long runs of a network take: measured when a model is loaded, learnt from its runs.

Knows no queue and no network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.dropout.sampling import FIRST_BLOCK, AdaptiveSamples, FixedSamples, Sampling
from service.engine.pending_requests import PendingRequest

_MOST_KINDS = 64  # every seed is one, as its masks are drawn first
_MOST_SLOWER = 1.05
"""By how much one run may raise an estimate: a run that was held up by others says little."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model's network takes, as measured when it was loaded.

    Attributes:
        trunk_seconds: processor time of the trunk for one row.
        head_seconds: processor time of the head for one row and one dropout sample.
        analytic_samples: the samples that the analytic method runs the head on; 0 where the head
            has no such method.
    """

    trunk_seconds: float
    head_seconds: float
    analytic_samples: int = 0


class Rate:
    """Seconds that a unit of work takes, as the last runs had it, and the fastest of all."""

    __slots__ = ("fastest", "recent")

    def __init__(self, seconds: float) -> None:
        self.fastest = self.recent = seconds

    def note(self, seconds: float) -> None:
        """Learn from one run."""
        self.recent = min(seconds, self.recent * _MOST_SLOWER)
        self.fastest = min(self.fastest, seconds)


class LatencyEstimator:
    """Estimates how long the network runs for given rows and samples.

    It knows two things: how long rows of each kind took that was run before, and the rates of the
    trunk and of the head, which also tell of kinds that were not. Without `costs` there are no
    rates, and every estimate that is made of them is 0.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._seconds_per_row: dict[object, float] = {}
        self._costs = costs
        self.trunk = Rate(costs.trunk_seconds if costs else 0.0)
        """Of one row."""
        self.head = Rate(costs.head_seconds if costs else 0.0)
        """Of one row and one sample."""

    def seen_seconds(self, jobs: Sequence[PendingRequest]) -> float:
        """Seconds that one run of all jobs will take; infinite where a kind was never run."""
        known = self._seconds_per_row.get
        if len(jobs) == 1:
            return jobs[0].rows * known(jobs[0].kind, math.inf)
        return sum([job.rows * known(job.kind, math.inf) for job in jobs])

    def row_seconds(self, sampling: Sampling | None) -> float:
        """Seconds that one row is likely to take; where samples are automatic, at most."""
        if sampling is None:
            return self.trunk.recent
        return self.trunk.recent + self.head.recent * self._most_samples(sampling)

    def least_row_seconds(self, sampling: Sampling | None) -> float:
        """Seconds that one row takes when all goes as fast as it ever did, and settles at once."""
        if sampling is None:
            return self.trunk.fastest
        samples = self._most_samples(sampling)
        if isinstance(sampling, AdaptiveSamples):
            samples = min(samples, FIRST_BLOCK)
        return self.trunk.fastest + self.head.fastest * samples

    def samples_within(self, seconds: float) -> int:
        """Return how many samples of one row can be had in a time."""
        if not self.head.fastest:
            return 0
        return max(0, int((seconds - self.trunk.fastest) / self.head.fastest))

    def note(self, jobs: Sequence[PendingRequest], rows: int, seconds: float) -> None:
        """Learn from a run of `rows` rows, if all of it was of one kind."""
        kind = jobs[0].kind
        if kind is None or (len(jobs) > 1 and any(job.kind != kind for job in jobs)):
            return
        if len(self._seconds_per_row) > _MOST_KINDS:
            self._seconds_per_row.clear()
        self._seconds_per_row[kind] = seconds / rows

    def note_rates(
        self, jobs: Sequence[PendingRequest], rows: int, trunk_seconds: float, head_seconds: float
    ) -> None:
        """Learn the rates from a run that was long enough to tell."""
        if self._costs is None:
            return
        self.trunk.note(trunk_seconds / rows)
        sampling = jobs[0].sampling
        if isinstance(sampling, FixedSamples) and all(job.sampling == sampling for job in jobs):
            self.head.note(head_seconds / (rows * sampling.samples))

    def _most_samples(self, sampling: Sampling) -> int:
        if isinstance(sampling, FixedSamples):
            return sampling.samples
        if isinstance(sampling, AdaptiveSamples):
            return sampling.most
        return self._costs.analytic_samples if self._costs else 0
