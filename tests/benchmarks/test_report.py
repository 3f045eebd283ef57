from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.serving.comparison import Comparison, MeasuredServer, Plan
from benchmarks.serving.load import ClosedLoopResult
from benchmarks.serving.open_loop import OpenLoopResult, percentiles
from benchmarks.serving.peers import PEERS
from benchmarks.serving.report import ratio, records

PLAN = Plan(rounds=3, seconds=1, connections=(1, 32), rates=(100.0, 200.0), kinds=("OIP JSON",))
BY_NAME = {each.name: each for each in PEERS}


def closed_loop_results(*rates: float, refused: int = 0) -> list[ClosedLoopResult]:
    return [ClosedLoopResult(32, rate, refused, 0, p50=2.0, p99=9.0) for rate in rates]


def measured_server(
    name: str, rates: Sequence[float], answered: float = 1.0, lateness: float = 0.1
) -> MeasuredServer:
    latencies = percentiles([0.002] * 99 + [0.05])
    result = OpenLoopResult(100, 100, {"200": 100}, 100.0, latencies, answered, lateness)
    return MeasuredServer(
        peer=BY_NAME[name],
        versions="it 1.0",
        start_seconds=1.0,
        server=cast("Any", None),
        targets=cast("Any", {"OIP JSON": None}),
        processes=1,
        memory=[100.0, 300.0, 110.0],
        closed_loop={("OIP JSON", each): closed_loop_results(*rates) for each in PLAN.connections},
        open_loop={100.0: [result] * 3},
    )


def test_ratio_compares_medians() -> None:
    assert ratio(
        closed_loop_results(100, 900, 200), closed_loop_results(50, 400, 1)
    ) == pytest.approx(4)


def test_ratio_to_a_server_that_answers_nothing_is_infinite() -> None:
    assert ratio(closed_loop_results(100), closed_loop_results(0, 0, 5)) == float("inf")


def test_records_show_throughput_footprint_and_latency(tmp_path: Path) -> None:
    servers = [
        measured_server("ours", (200, 100, 300)),
        measured_server("triton", (400, 50, 500), answered=0.5),
    ]
    comparison = Comparison(servers, {"Ray Serve": "it ended by itself"})
    throughput, footprint, latency = records(comparison, PLAN, "On a machine.")
    assert throughput.rows == [
        ("OIP JSON", "Triton", "400 x0.50", "400 x0.50", "2.0, 9.0"),
        ("OIP JSON", "ours", "200", "200", "2.0, 9.0"),
    ]
    assert "Triton 0.50 to 0.50" in throughput.finding
    assert "Ray Serve, it ended by itself" in throughput.finding
    assert footprint.rows[0][:5] == ("ours", "it 1.0", "1.0 s", "110 MB", "1")
    assert latency.rows == [
        ("ours", "OIP JSON", "2.0, 50.0", ""),
        ("Triton", "OIP JSON", "2.0, 50.0 (50 % answered)", ""),
    ]
    for record in (throughput, footprint, latency):
        record.draw(tmp_path / f"{record.name}.svg")


def test_latency_record_marks_what_the_load_generator_sent_too_late() -> None:
    late = measured_server("ours", (200, 100, 300), lateness=30)
    *_, latency = records(Comparison([late], {}), PLAN, "")
    assert latency.rows == [("ours", "OIP JSON", "2.0, 50.0 (sent 30.0 ms late)", "")]


def test_throughput_record_shows_failed_requests() -> None:
    bad = measured_server("ours", (200, 100, 300))
    bad.closed_loop["OIP JSON", 32] = closed_loop_results(10, 10, 10, refused=4)
    throughput, *_ = records(Comparison([bad], {}), PLAN, "")
    assert throughput.rows == [("OIP JSON", "ours", "200", "10 (12 failed)", "2.0, 9.0")]
