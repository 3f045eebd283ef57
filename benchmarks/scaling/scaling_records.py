"""The tables of `python -m benchmarks.scaling`: the check, the replicas and the plan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.scaling.capacity_plan import UTILISATION, Demand, ReplicaRate, plan
from benchmarks.scaling.cost_measurement import (
    CALIBRATED_AT,
    CHECKED_AT,
    LOADS,
    Measurement,
)
from benchmarks.scaling.replica_costs import ReplicaCosts
from benchmarks.scaling.replica_simulation import (
    Balancer,
    Scenario,
    least_loaded,
    random_replica,
    simulate_closed_loop,
    simulate_open_loop,
    two_choices,
)
from training.experiments.experiment_record import Record

TOLERANCE = 0.15
"""How far a prediction may be from its measurement."""
_RATES = (1e4, 1e6)
_CANARY = 0.1
_SEED = 1
_BALANCERS: dict[str, Balancer] = {
    "random": random_replica,
    "two choices": two_choices,
    "least loaded": least_loaded,
}
_REPLICAS = (1, 2, 4, 8)
_SIMULATED_REQUESTS = 60_000


@dataclass(frozen=True)
class Kind:
    """One kind of request, measured."""

    name: str
    demand: Demand
    proxies: dict[str, float]
    """Processor time of each proxy for a request, seconds."""
    measurements: Sequence[Measurement]
    replica: ReplicaRate


@dataclass(frozen=True)
class Check:
    """A prediction and its measurement."""

    kind: str
    what: str
    simulated: float
    measured: float

    @property
    def ratio(self) -> float:
        """The prediction as a multiple of the measurement."""
        return self.simulated / self.measured

    @property
    def is_close(self) -> bool:
        """Whether the prediction is as close as a plan may rely on."""
        return abs(self.ratio - 1) <= TOLERANCE

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table."""
        numbers = (f"{self.simulated:,.3g}", f"{self.measured:,.3g}", f"{self.ratio:.2f}")
        return (self.kind, self.what, *numbers)


def check_predictions(kind: Kind) -> list[Check]:
    """Compare the simulation with the loads that the costs were not fitted to."""
    return [*_check_closed_loops(kind), *_check_open_loops(kind)]


def _check_closed_loops(kind: Kind) -> Iterator[Check]:
    for place, connections in enumerate(CHECKED_AT):
        simulated = simulate_closed_loop(Scenario(kind.demand.costs, 4.0), connections)
        measured = [each.checked[place] for each in kind.measurements]
        yield Check(
            kind.name,
            f"{connections} connections, responses a second",
            simulated.rate,
            median(each.result.rate for each in measured),
        )
        yield Check(
            kind.name,
            f"{connections} connections, processor µs a request",
            1e6 * simulated.utilisation / simulated.rate,
            1e6 * median(each.seconds for each in measured),
        )


def _check_open_loops(kind: Kind) -> Iterator[Check]:
    """Compare median latencies, without what the client adds to them at the lowest load."""
    added = 0.0
    for place, share in enumerate(LOADS):
        loops = [each.open_loops[place] for each in kind.measurements]
        rate = median(loop.rate for loop in loops)
        scenario = Scenario(kind.demand.costs, _SIMULATED_REQUESTS / rate)
        simulated = 1e3 * simulate_open_loop(scenario, rate).latencies["p50"]
        measured = median(loop.latencies["p50"] for loop in loops)
        if place == 0:
            added = measured - simulated
            continue
        what = f"open loop, {share:.0%} of that: p50 less {added:.2f} of the client, ms"
        yield Check(kind.name, what, simulated, measured - added)


def check_record(kinds: Sequence[Kind], rows: Sequence[Check], setting: str) -> Record:
    """Return the costs, and the predictions beside the measurements."""
    parts = "; ".join(
        f"{kind.name}: {1e6 * costs.turn:.0f} µs a turn, {1e6 * costs.request:.0f} a request, "
        f"{1e6 * costs.run.fixed:.0f} a run and {1e6 * costs.run.row:.1f} for each image in it"
        for kind in kinds
        for costs in (kind.demand.costs,)
    )
    within = sum(row.is_close for row in rows)
    return Record(
        name="scaling-check",
        title="A simulated replica beside a measured one",
        setting=f"{setting} The costs are fitted to loads of {CALIBRATED_AT[0]} and "
        f"{CALIBRATED_AT[1]} connections and to runs in one process, and checked at others.",
        columns=("request", "what", "simulated", "measured", "ratio"),
        rows=[
            (
                row.kind,
                row.what,
                f"{row.simulated:,.3g}",
                f"{row.measured:,.3g}",
                f"{row.ratio:.2f}",
            )
            for row in rows
        ],
        finding=f"Costs: {parts}. {within} of {len(rows)} predictions are within "
        f"{TOLERANCE:.0%} of the measurement.",
    )


def replicas_record(costs: ReplicaCosts, replica: ReplicaRate) -> Record:
    """Simulate several replicas, each with the load of one, with and without a canary."""
    rows = []
    for count in _REPLICAS:
        for name, balancer in _BALANCERS.items() if count > 1 else [("none", random_replica)]:
            for canary in (0.0, _CANARY):
                rate = replica.rate * count
                seconds = _SIMULATED_REQUESTS / rate
                found = simulate_open_loop(
                    Scenario(costs, seconds, count, balancer, canary, _SEED), rate
                )
                latencies = (f"{1e3 * found.latencies[each]:.2f}" for each in ("p50", "p99"))
                rows.append(
                    (str(count), name, f"{canary:.0%}", *latencies, f"{found.utilisation:.0%}")
                )
    return Record(
        name="scaling-replicas",
        title="Simulated replicas behind a balancer",
        setting=f"Plain predictions, {replica.rate:,.0f} requests a second for each replica, at "
        "random times, simulated with the costs of the same run.",
        columns=("replicas", "balancer", "canary", "p50, ms", "p99, ms", "busy"),
        rows=rows,
        finding="Every replica has a core; what the proxy adds is left out.",
    )


def plan_record(kinds: Sequence[Kind]) -> Record:
    """Return what large loads of each kind of request need."""
    rows = []
    for kind in kinds:
        for rate in _RATES:
            needs = plan(kind.demand, kind.replica, rate)
            rows.append(
                (
                    kind.name,
                    f"{rate:,.0f}",
                    f"{needs.replicas:,}",
                    f"{needs.proxy_cores:,.1f}",
                    f"{needs.gigabits:.2f}",
                )
            )
    hours = "; ".join(
        f"{kind.name}: {kind.replica.core_hours_per_million:.3f} core-hours for a million, "
        f"{kind.replica.rate:,.0f} a second and replica, p99 "
        f"{1e3 * kind.replica.simulated.latencies['p99']:.1f} ms, "
        f"{kind.replica.simulated.rows:.1f} requests a turn, {kind.demand.wire_bytes} bytes on the "
        "wire, "
        + ", ".join(f"{1e6 * cost:.0f} µs of {name}" for name, cost in kind.proxies.items())
        for kind in kinds
    )
    return Record(
        name="scaling-plan",
        title="What large loads need",
        setting=f"Replicas of one core that work {UTILISATION:.0%} of the time, computed from the "
        "costs of the same run; proxy cores are of the cheaper proxy, as busy.",
        columns=("request", "requests a second", "replicas", "proxy cores", "Gbit/s"),
        rows=rows,
        finding=f"{hours}.",
    )
