"""Measures what requests cost one replica on one core of this machine, and how it then behaves.

The replica is a real service, the load comes from wrk and from an open loop, on another core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from benchmarks.scaling.replica_costs import ReplicaCosts, RunCost
from benchmarks.scaling.replica_simulation import Scenario, simulate_closed_loop
from benchmarks.serving.load import ClosedLoopResult, LoadGenerator, Target
from benchmarks.serving.open_loop import OpenLoopResult
from benchmarks.serving.servers import Server
from model.dropout.sampling_methods import FixedSamples
from model.inference.predictor import Predictor

CALIBRATED_AT = (1, 128)
"""The numbers of connections at which the costs are measured."""
CHECKED_AT = (8, 32)
LOADS = (0.1, 0.5, 0.75)
"""Shares of the rate with the most checked connections that are sent in an open loop. The first one
shows what the client and the way to it add to a latency; the others are checked."""

_ROWS = (1, 2, 4, 8, 16, 32)
_RUNS = 200
_SIMULATED_SECONDS = 1.0
_SEED = 3


@dataclass(frozen=True)
class LoadCost:
    """A load by wrk, and what it cost the service."""

    result: ClosedLoopResult
    seconds: float
    """Processor time of the service for each response."""


@dataclass(frozen=True)
class Measurement:
    """One round of measurements of one kind of request."""

    run: RunCost
    calibration: tuple[LoadCost, ...]
    """At CALIBRATED_AT."""
    checked: tuple[LoadCost, ...]
    """At CHECKED_AT."""
    open_loops: tuple[OpenLoopResult, ...]
    """At LOADS."""


def measure_runs(predictor: Predictor, images: NDArray[np.float32], samples: int | None) -> RunCost:
    """Time runs of 1 to 32 images, float32 [N, C, H, W], in this process; the median of each.

    samples: with dropout active; None: deterministic predictions.
    """
    return RunCost.fit(
        _ROWS,
        [
            _median_seconds(_call(predictor, np.resize(images, (rows, *images.shape[1:])), samples))
            for rows in _ROWS
        ],
    )


def _call(
    predictor: Predictor, images: NDArray[np.float32], samples: int | None
) -> Callable[[], object]:
    if samples is None:
        return lambda: predictor.predict(images)
    sampling = FixedSamples(_SEED, samples, summary_only=True)
    return lambda: predictor.uncertainty(predictor.predict(images), sampling)


def _median_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_RUNS):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return median(seconds)


class ReplicaLoad:
    """Loads one running service."""

    def __init__(self, server: Server, target: Target, load: LoadGenerator, seconds: int) -> None:
        """Take what `benchmarks.serving` has started; seconds: of each load."""
        self._server, self._target, self._load = server, target, load
        self._seconds = seconds

    def measure(self, run: RunCost, seed: int) -> Measurement:
        """Measure one round."""
        self._load.closed_loop(self._target, CHECKED_AT[-1], 1)  # warms up
        calibration = tuple(map(self._closed_loop, CALIBRATED_AT))
        checked = tuple(map(self._closed_loop, CHECKED_AT))
        most = checked[-1].result.rate
        loops = tuple(
            self._load.open_loop(self._target, share * most, self._seconds, seed) for share in LOADS
        )
        return Measurement(run, calibration, checked, loops)

    def _closed_loop(self, connections: int) -> LoadCost:
        before = self._server.processor_seconds()
        result = self._load.closed_loop(self._target, connections, self._seconds)
        spent = self._server.processor_seconds() - before
        return LoadCost(result, spent / (result.rate * self._seconds))


def costs_of(measurements: Sequence[Measurement], batch_rows: int) -> ReplicaCosts:
    """Return the costs with which a simulated replica spends what the measured one spent.

    With one connection each turn has one request; the more connections, the more of them share a
    turn. So the costs of a turn and of a request are told apart by a second number of connections.
    """
    run = RunCost(
        median(each.run.fixed for each in measurements),
        median(each.run.row for each in measurements),
    )
    single, shared = (
        median(each.calibration[place].seconds for each in measurements) for place in (0, 1)
    )
    outside_of_runs = max(0.0, single - run.seconds(1))

    def with_turn(turn: float) -> ReplicaCosts:
        return ReplicaCosts(turn, outside_of_runs - turn, run, batch_rows)

    def excess(turn: float) -> float:
        scenario = Scenario(with_turn(turn), _SIMULATED_SECONDS)
        simulated = simulate_closed_loop(scenario, CALIBRATED_AT[1])
        return simulated.utilisation / simulated.rate - shared

    if outside_of_runs == 0 or excess(0) <= 0:
        return with_turn(0)
    if excess(outside_of_runs) >= 0:
        return with_turn(outside_of_runs)
    return with_turn(brentq(excess, 0, outside_of_runs, xtol=1e-7))
