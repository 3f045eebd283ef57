"""The bars and the figure of `benchmarks.drift`."""

from argparse import Namespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.drift import Alarm, Measured, Row, describe

RANKS = np.zeros((1, 2), np.int64)
MEASURED = Measured("digits, 8 epochs", "mnist", 1000, RANKS, RANKS)


def row(share: float, *delays: int | None) -> Row:
    alarms = [None if delay is None else Alarm(delay, 1) for delay in delays]
    return Row(MEASURED, "a stream", share, alarms)


@pytest.mark.parametrize(
    ("measured", "is_met"),
    [
        (row(0, *[None] * 98, 5, 9), True),
        (row(0, *[None] * 97, 5, 9, 30), False),
        (row(0.05, None, *[7] * 19), True),
        (row(0.05, None, *[7] * 18), False),
        (row(0.01, None, None), True),
    ],
    ids=["as many false alarms", "too many", "drift detected", "drift missed", "no bar"],
)
def test_bar_is_for_false_alarms_and_for_detections(measured: Row, is_met: bool) -> None:
    assert measured.meets_bar(level=0.01) == is_met


def test_figure_and_table_leave_out_the_streams_with_an_alarm_before_the_change() -> None:
    drifting = row(0.05, -3, 10, 20, None)
    rows = [row(0, None), drifting]
    record = describe(rows, Namespace(streams=4, images=100, level=0.01), met=True)
    (line,) = cast("Any", record.figure).axes[0].lines
    assert drifting.raised == pytest.approx(2 / 3)
    assert record.rows[1][3] == "66.7%"
    assert line.get_ydata()[-1] == pytest.approx(drifting.raised)
