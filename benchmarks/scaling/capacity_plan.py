"""From the costs of a request to replicas, core-hours, proxies and bandwidth for a load."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq

from benchmarks.scaling.replica_costs import ReplicaCosts
from benchmarks.scaling.replica_simulation import Scenario, Simulated, simulate_open_loop

UTILISATION = 0.6
"""The share of its core that a replica works in the plan; the rest is for peaks and failures."""
_SIMULATED_REQUESTS = 20_000
_SECONDS_PER_HOUR, _BITS, _GIGA, _MILLION = 3600, 8, 1e9, 1e6


@dataclass(frozen=True)
class Demand:
    """What one kind of request takes of each part of the way."""

    costs: ReplicaCosts
    proxy_seconds: float
    """Processor time of the proxy for a request."""
    wire_bytes: int
    """Bytes of a request and its response as HTTP/1.1, without TCP's own."""


@dataclass(frozen=True)
class Plan:
    """What a rate of requests needs."""

    rate: float
    replicas: int
    """Of one core each."""
    proxy_cores: float
    gigabits: float
    """A second, between the proxy and the replicas."""


@dataclass(frozen=True)
class ReplicaRate:
    """What one replica answers at UTILISATION."""

    rate: float
    """Requests a second."""
    simulated: Simulated

    @property
    def core_hours_per_million(self) -> float:
        """Core-hours that are paid for a million requests, idle time included."""
        return _MILLION / self.rate / _SECONDS_PER_HOUR


def replica_rate(costs: ReplicaCosts, requests: int = _SIMULATED_REQUESTS) -> ReplicaRate:
    """Find by simulation the rate at which a replica works UTILISATION of the time.

    The more requests share a turn and a run, the less each costs; so this is no plain division.

    requests: how many are simulated at each rate.
    """
    least = UTILISATION / (costs.turn + costs.request + costs.run.seconds(1))
    most = UTILISATION / costs.least_seconds()

    def simulate(rate: float) -> Simulated:
        return simulate_open_loop(Scenario(costs, requests / rate), rate)

    def excess(rate: float) -> float:
        return simulate(rate).utilisation - UTILISATION

    rate = float(brentq(excess, 0.8 * least, 1.2 * most, rtol=0.005))
    return ReplicaRate(rate, simulate(rate))


def plan(demand: Demand, replica: ReplicaRate, rate: float) -> Plan:
    """Return what `rate` requests a second need."""
    return Plan(
        rate,
        math.ceil(rate / replica.rate),
        rate * demand.proxy_seconds / UTILISATION,
        rate * demand.wire_bytes * _BITS / _GIGA,
    )
