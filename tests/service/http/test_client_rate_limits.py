"""Limits of each client's requests and images: time is a number here."""

from pathlib import Path

import pytest

from service.errors import RateLimitError
from service.http import client_rate_limits
from service.http.client_rate_limits import ClientRates, RateLimits
from service.http.rate_table_of_all_workers import (
    SLOTS,
    RateTable,
    make_shared_table,
    shared_table,
    table_in_memory,
)
from service.observability.metrics_recorder import Metrics
from tests.service.serving import metric


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client_rate_limits, "time", clock)
    return clock


def rates(
    requests: float | None, images: float | None, burst: float, table: RateTable | None = None
) -> ClientRates:
    limits = RateLimits(requests, images, burst)
    return ClientRates(limits, table or table_in_memory(), Metrics())


def admitted(limiter: ClientRates, client: str, tries: int) -> int:
    """Return how many of several requests at once are admitted."""
    count = 0
    for _ in range(tries):
        try:
            limiter.admit(client)
        except RateLimitError:
            continue
        count += 1
    return count


def test_client_may_send_a_burst_and_then_its_rate(clock: Clock) -> None:
    limiter = rates(5, None, burst=2)
    assert admitted(limiter, "a", 100) == 10
    total = 0
    for _ in range(1000):
        clock.now += 0.01
        total += admitted(limiter, "a", 3)
    assert abs(total - 50) <= 1
    clock.now += 1e6
    assert admitted(limiter, "a", 100) == 10


def test_clients_do_not_share_a_limit(clock: Clock) -> None:
    limiter = rates(1, None, burst=1)
    assert [admitted(limiter, each, 2) for each in ("a", "b", "c")] == [1, 1, 1]


def test_refusal_says_when_to_come_back_and_is_true(clock: Clock) -> None:
    limiter = rates(0.25, None, burst=1)
    limiter.admit("a")
    with pytest.raises(RateLimitError) as refused:
        limiter.admit("a")
    assert refused.value.retry_after_seconds == 4
    clock.now += 3.9
    assert admitted(limiter, "a", 1) == 0
    clock.now += 0.1
    assert admitted(limiter, "a", 1) == 1


def test_refused_requests_cost_their_client_nothing(clock: Clock) -> None:
    limiter = rates(1, None, burst=1)
    assert admitted(limiter, "a", 10_000) == 1
    clock.now += 1
    assert admitted(limiter, "a", 10_000) == 1


def test_batch_larger_than_a_burst_is_served_and_paid_for_before_the_next(clock: Clock) -> None:
    limiter = rates(None, 10, burst=2)
    limiter.admit("a").charge_images(64)
    with pytest.raises(RateLimitError, match="10 images a second") as refused:
        limiter.admit("a")
    clock.now += refused.value.retry_after_seconds
    limiter.admit("a")


def test_batches_that_were_admitted_at_once_are_not_all_served(clock: Clock) -> None:
    limiter = rates(None, 10, burst=2)
    allowances = [limiter.admit("a") for _ in range(50)]
    allowances[0].charge_images(64)
    for each in allowances[1:]:
        with pytest.raises(RateLimitError):
            each.charge_images(64)


def test_long_run_rate_of_images_is_the_limit(clock: Clock) -> None:
    limiter = rates(None, 10, burst=2)
    served = 0
    for _ in range(10_000):
        clock.now += 0.1
        try:
            limiter.admit("a").charge_images(7)
        except RateLimitError:
            continue
        served += 7
    assert abs(served - 10_000) <= 20 + 7


def test_workers_share_the_limit(clock: Clock, tmp_path: Path) -> None:
    make_shared_table(tmp_path)
    workers = [rates(5, None, 2, shared_table(tmp_path)) for _ in range(3)]
    assert sum(admitted(worker, "a", 2) for _ in range(10) for worker in workers) == 10


def test_other_clients_do_not_displace_a_client_that_has_to_pay(clock: Clock) -> None:
    limiter = rates(1, None, burst=60)
    assert admitted(limiter, "a", 100) == 60
    for number in range(2 * SLOTS):
        limiter.admit(f"other {number}")
    assert admitted(limiter, "a", 100) == 0


def test_hash_of_a_client_is_secret() -> None:
    assert table_in_memory().tag("a") != table_in_memory().tag("a")


def test_refusals_are_counted_by_limit(clock: Clock) -> None:
    metrics = Metrics()
    limiter = ClientRates(RateLimits(1, 1, 1), table_in_memory(), metrics)
    limiter.admit("a").charge_images(5)
    for _ in range(2):
        with pytest.raises(RateLimitError):
            limiter.admit("a")
    clock.now += 1
    with pytest.raises(RateLimitError, match="images"):
        limiter.admit("a")
    exposed = metrics.render().decode()
    name = "dropserve_rate_refusals_total"
    assert metric(exposed, name, limit="requests") == 2
    assert metric(exposed, name, limit="images") == 1
