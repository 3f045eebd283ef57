"""A discrete-event simulation of replicas that answer requests in batches, behind a balancer.

A replica has one core. In each turn its event loop reads all requests that have arrived. The first
of each version runs at once, alone; the others of that version form a batch, which runs in the next
turn, before that reads. Requests that arrive meanwhile wait. That is what the service does with
networks whose runs are short (decisions 3 and 8). Times are in seconds. Knows no measurement.
"""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from benchmarks.scaling.replica_costs import ReplicaCosts

Events = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class Request:
    """A request of one image for one version."""

    version: int
    sent: float
    answered: simpy.Event


class Replica:
    """One replica, which answers what `accept` gives it."""

    def __init__(self, env: simpy.Environment, costs: ReplicaCosts) -> None:
        """Wait for requests."""
        self._env, self._costs = env, costs
        self._arrived: list[Request] = []
        self._wake = env.event()
        self.in_flight = 0
        self.busy = 0.0
        """Seconds that the core has worked."""
        self.answered = 0
        self.turns = 0
        env.process(self._serve())

    def accept(self, request: Request) -> None:
        """Let a request arrive."""
        self.in_flight += 1
        self._arrived.append(request)
        if not self._wake.triggered:
            self._wake.succeed()

    def _serve(self) -> Events:
        while True:
            if not self._arrived:
                self._wake = self._env.event()
                yield self._wake
            yield from self._take_turn()

    def _take_turn(self) -> Events:
        """Read all that has arrived, and run it."""
        requests, self._arrived = self._arrived, []
        self.turns += 1
        yield self._work(self._costs.turn)
        waiting: dict[int, list[Request]] = {}
        for request in requests:
            yield self._work(self._costs.request)
            if request.version in waiting:
                waiting[request.version].append(request)
                continue
            waiting[request.version] = []
            yield self._work(self._costs.run.seconds(1))
            self._answer([request])
        if any(waiting.values()):
            yield self._work(self._costs.turn)
        for batch in waiting.values():
            yield from self._run(batch)

    def _run(self, requests: Sequence[Request]) -> Events:
        for start in range(0, len(requests), self._costs.batch_rows):
            batch = requests[start : start + self._costs.batch_rows]
            yield self._work(self._costs.run.seconds(len(batch)))
            self._answer(batch)

    def _work(self, seconds: float) -> simpy.Event:
        self.busy += seconds
        return self._env.timeout(seconds)

    def _answer(self, requests: Sequence[Request]) -> None:
        self.in_flight -= len(requests)
        self.answered += len(requests)
        for request in requests:
            request.answered.succeed()


Balancer = Callable[[Sequence[Replica], random.Random], Replica]
"""Chooses the replica of a request."""


def random_replica(replicas: Sequence[Replica], rng: random.Random) -> Replica:
    """Choose any replica, as Kubernetes' Services do for connections."""
    return rng.choice(replicas)


def least_loaded(replicas: Sequence[Replica], rng: random.Random) -> Replica:
    """Choose the replica with the fewest requests in flight, as `least_conn` and `leastconn` do."""
    least = min(replica.in_flight for replica in replicas)
    return rng.choice([replica for replica in replicas if replica.in_flight == least])


def two_choices(replicas: Sequence[Replica], rng: random.Random) -> Replica:
    """Choose the less loaded of two random replicas (Mitzenmacher 2001), as Ray Serve does."""
    first, second = rng.choice(replicas), rng.choice(replicas)
    return min(first, second, key=lambda replica: replica.in_flight)


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    costs: ReplicaCosts
    seconds: float
    """Simulated time; the first tenth of it is not counted."""
    replicas: int = 1
    balancer: Balancer = random_replica
    canary: float = 0.0
    """The share of the requests that go to a second version."""
    seed: int = 0


@dataclass(frozen=True)
class Simulated:
    """What the clients and the replicas see."""

    rate: float
    """Responses a second."""
    latencies: dict[str, float]
    """Of the requests, seconds: `mean`, `p50`, `p99`."""
    utilisation: float
    """The share of the time that the replicas' cores work."""
    rows: float
    """Requests of a turn, on average."""


@dataclass
class _Run:
    """A simulation under way."""

    scenario: Scenario
    env: simpy.Environment = field(default_factory=simpy.Environment)
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare the replicas and the random numbers."""
        self.rng = random.Random(self.scenario.seed)  # noqa: S311
        self.replicas = [
            Replica(self.env, self.scenario.costs) for _ in range(self.scenario.replicas)
        ]

    def send(self) -> Request:
        """Send a request to the replica that the balancer chooses."""
        version = int(self.rng.random() < self.scenario.canary)
        request = Request(version, self.env.now, self.env.event())
        assert request.answered.callbacks is not None
        request.answered.callbacks.append(lambda _: self._note(request))
        self.scenario.balancer(self.replicas, self.rng).accept(request)
        return request

    def _note(self, request: Request) -> None:
        if request.sent >= self.scenario.seconds / 10:
            self.latencies.append(self.env.now - request.sent)

    def result(self) -> Simulated:
        """Simulate, and return what was seen."""
        warm = self.scenario.seconds / 10
        self.env.run(until=warm)
        answered, busy, turns = self._totals()
        self.env.run(until=self.scenario.seconds)
        more, worked, turned = self._totals()
        duration = self.scenario.seconds - warm
        p50, p99 = np.percentile(self.latencies, [50, 99])
        return Simulated(
            (more - answered) / duration,
            {"mean": float(np.mean(self.latencies)), "p50": float(p50), "p99": float(p99)},
            (worked - busy) / duration / len(self.replicas),
            (more - answered) / max(1, turned - turns),
        )

    def _totals(self) -> tuple[int, float, int]:
        return (
            sum(replica.answered for replica in self.replicas),
            sum(replica.busy for replica in self.replicas),
            sum(replica.turns for replica in self.replicas),
        )


def simulate_open_loop(scenario: Scenario, rate: float) -> Simulated:
    """Simulate independent clients: requests arrive at random, `rate` a second (Poisson)."""
    run = _Run(scenario)

    def arrivals() -> Events:
        while True:
            yield run.env.timeout(run.rng.expovariate(rate))
            run.send()

    run.env.process(arrivals())
    return run.result()


def simulate_closed_loop(
    scenario: Scenario, connections: int, client_seconds: float = 0.0
) -> Simulated:
    """Simulate connections that each send their next request when they have the last response.

    client_seconds: what the program that holds all of the connections takes for each response, one
        after another.
    """
    run = _Run(scenario)
    client = simpy.Resource(run.env)

    def connection() -> Events:
        while True:
            yield run.send().answered
            with client.request() as turn:
                yield turn
                yield run.env.timeout(client_seconds)

    for _ in range(connections):
        run.env.process(connection())
    return run.result()
