"""The rest after each run of a comparison."""

import asyncio

import pytest

from service.shadow.spare_time import SpareTime


class Clocks:
    """Wall-clock and processor time that a test sets."""

    def __init__(self) -> None:
        self.now, self.used = 0.0, 0.0


@pytest.mark.parametrize(
    ("used", "processors", "expected"),
    [(0.1, 2.0, 4.0), (0.9, 2.0, 199.0), (0.3, 1.0, 4.0), (0.3, 0.5, 199.0)],
)
def test_comparison_rests_longer_where_requests_leave_no_room(
    used: float, processors: float, expected: float
) -> None:
    """expected: how many times as long as the run."""
    clocks = Clocks()
    spare = SpareTime(processors, lambda: clocks.now, lambda: clocks.used)
    clocks.now, clocks.used = 1.0, used
    assert spare.rest_seconds(0.001) == pytest.approx(0.001 * expected)
    assert spare.is_busy == (expected > 100)


def test_own_runs_do_not_count_as_requests() -> None:
    clocks = Clocks()
    spare = SpareTime(1.0, lambda: clocks.now, lambda: clocks.used)
    clocks.now = clocks.used = 1.0
    assert spare.rest_seconds(0.9) == pytest.approx(3.6)
    assert not spare.is_busy
    assert spare.rest_seconds(1000.0) == 5.0


def test_comparison_rests_longer_where_the_event_loop_wakes_up_late() -> None:
    times = iter([0.0, 0.0, 0.0, 0.06, 0.06])
    spare = SpareTime(1.0, lambda: next(times), lambda: 0.0)
    asyncio.run(spare.rest(0.0))
    assert spare.is_busy
    assert spare.rest_seconds(0.001) == pytest.approx(0.199)
