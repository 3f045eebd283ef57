"""The simulation of replicas beside queueing theory, and the plan that is computed from it."""

import pytest

from benchmarks.scaling.capacity_plan import UTILISATION, Demand, plan, replica_rate
from benchmarks.scaling.cost_measurement import LoadCost, Measurement, costs_of
from benchmarks.scaling.replica_costs import ReplicaCosts, RunCost
from benchmarks.scaling.replica_simulation import (
    Scenario,
    least_loaded,
    random_replica,
    simulate_closed_loop,
    simulate_open_loop,
    two_choices,
)
from benchmarks.serving.load import ClosedLoopResult

COSTS = ReplicaCosts(turn=2e-4, request=1e-4, run=RunCost(5e-5, 1e-5), batch_rows=32)
ALONE = COSTS.turn + COSTS.request + COSTS.run.seconds(1)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_replica_without_batches_waits_as_a_queue_of_one_server_and_fixed_service(
    load: float,
) -> None:
    """M/D/1: the mean time in the system is s (1 + r / (2 - 2 r)) at load r (Pollaczek)."""
    service = 1e-3
    costs = ReplicaCosts(0.0, 0.0, RunCost(0.0, service), batch_rows=1)
    found = simulate_open_loop(Scenario(costs, seconds=40.0), load / service)
    assert found.latencies["mean"] == pytest.approx(
        service * (1 + load / (2 * (1 - load))), rel=0.05
    )
    assert found.utilisation == pytest.approx(load, rel=0.03)


def test_one_connection_waits_for_nobody() -> None:
    found = simulate_closed_loop(Scenario(COSTS, seconds=1.0), connections=1)
    assert found.latencies["p99"] == pytest.approx(ALONE)
    assert found.rate == pytest.approx(1 / ALONE, rel=0.01)
    assert found.rows == 1


def test_more_connections_share_turns_and_runs_up_to_the_least_cost() -> None:
    rates = [
        simulate_closed_loop(Scenario(COSTS, seconds=1.0), connections).rate
        for connections in (1, 8, 64)
    ]
    assert rates == sorted(rates)
    assert rates[-1] < 1 / COSTS.least_seconds()


def test_balancers_that_look_at_the_load_wait_less_than_a_random_one() -> None:
    rate = 4 * 0.6 / ALONE
    p99 = [
        simulate_open_loop(Scenario(COSTS, 1.5, 4, balancer), rate).latencies["p99"]
        for balancer in (random_replica, two_choices, least_loaded)
    ]
    assert p99 == sorted(p99, reverse=True)


def test_canary_divides_batches_and_so_takes_more_of_the_core() -> None:
    costs = ReplicaCosts(0.0, 1e-5, RunCost(5e-4, 1e-5), batch_rows=32)
    plain, canary = (
        simulate_closed_loop(Scenario(costs, seconds=0.5, canary=share), connections=32)
        for share in (0.0, 0.5)
    )
    assert canary.rate < plain.rate


def test_costs_are_found_again_from_what_a_simulated_replica_spends() -> None:
    def spent(connections: int) -> LoadCost:
        found = simulate_closed_loop(Scenario(COSTS, seconds=1.0), connections)
        result = ClosedLoopResult(connections, found.rate, 0, 0, 0.0, 0.0)
        return LoadCost(result, found.utilisation / found.rate)

    measured = Measurement(COSTS.run, (spent(1), spent(128)), (), ())
    found = costs_of([measured], COSTS.batch_rows)
    assert found.turn == pytest.approx(COSTS.turn, rel=0.05)
    assert found.request == pytest.approx(COSTS.request, rel=0.05)


def test_run_cost_is_fitted_to_runs_of_several_sizes() -> None:
    rows = (1, 4, 32)
    found = RunCost.fit(rows, [3e-5 + 2e-6 * each for each in rows])
    assert found.fixed == pytest.approx(3e-5)
    assert found.row == pytest.approx(2e-6)


def test_plan_has_room_for_peaks_and_grows_with_the_rate() -> None:
    replica = replica_rate(COSTS, requests=5_000)
    assert replica.simulated.utilisation == pytest.approx(UTILISATION, rel=0.03)
    demand = Demand(COSTS, proxy_seconds=3e-5, wire_bytes=1250)
    small, large = (plan(demand, replica, rate) for rate in (1e4, 1e6))
    assert small.replicas * replica.rate >= 1e4 > (small.replicas - 1) * replica.rate
    assert large.replicas == pytest.approx(100 * small.replicas, rel=0.2)
    assert large.proxy_cores == pytest.approx(50.0)
    assert large.gigabits == pytest.approx(10.0)
    assert replica.core_hours_per_million == pytest.approx(1e6 / replica.rate / 3600)
