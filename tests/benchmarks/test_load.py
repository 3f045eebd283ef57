from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.serving import overload
from benchmarks.serving.load import (
    ClosedLoopResult,
    LoadGeneratorError,
    PacedResult,
    Target,
    parse_h2load,
    parse_wrk,
)
from benchmarks.serving.open_loop import OpenLoopResult, percentiles
from benchmarks.serving.overload import (
    OverloadBenchmark,
    RetryStorm,
    Round,
    meets_criteria,
    overload_record,
    status_counts,
)
from benchmarks.serving.payloads import Content
from benchmarks.serving.setup import Setup
from model.bundle.store import open_bundle


def test_parse_wrk_does_not_count_refused_requests_in_the_rate() -> None:
    output = (
        "Running 2s test @ http://127.0.0.1:8300/\n  1 threads and 32 connections\n"
        '{"requests":1100,"microseconds":2000000,"refused":100,"lost":3,"p50":1.5,"p99":9.25}\n'
    )
    result = parse_wrk(output, 32)
    assert result.rate == pytest.approx(500)
    assert (result.connections, result.refused, result.lost, result.p50, result.p99) == (
        32,
        100,
        3,
        1.5,
        9.25,
    )


def test_parse_h2load_counts_only_successful_responses_in_the_rate() -> None:
    output = (
        "requests: 15296 total, 15296 started, 15296 done, 15200 succeeded, 96 failed, "
        "3 errored, 1 timeout\nstatus codes: 15200 2xx, 0 3xx, 0 4xx, 96 5xx\n"
    )
    result = parse_h2load(output, rate=8_000, seconds=4)
    assert result.offered == 8_000
    assert result.rate == pytest.approx(3_800)
    assert result.statuses == {"2xx": 15200, "5xx": 96, "lost": 4}


def test_statuses_are_read_from_the_metrics_of_the_service() -> None:
    line = 'dropserve_requests_total{{method="{}",route="{}",status="{}"}} {}\n'
    counts = (
        ("POST", "/predict", 200, 9.0),
        ("any", "none", 429, 2.0),
        ("POST", "/predict", 503, 7.0),
        ("POST", "/v2/models/{name}/infer", 200, 1e2),
        ("POST", "/predict", 499, 32.0),  # the load generator hung up at its end
        ("GET", "/metrics", 200, 5.0),
        ("GET", "/health/live", 200, 100.0),
    )
    found = status_counts("".join(line.format(*each) for each in counts))
    assert found == {"200": 109, "503": 7, "429": 2}


def measured_round(**changes: dict[str, int] | int) -> Round:
    """Return a round that meets every criterion; changes: statuses of parts, or lost requests."""
    statuses: dict[str, dict[str, int]] = {
        "half": {"200": 100},
        "evenly": {"200": 100},
        "twice": {"200": 450, "503": 300},
        "storm": {"200": 400, "503": 900},
    } | cast("Any", {name: each for name, each in changes.items() if name != "lost"})
    lost = cast("int", changes.get("lost", 0))
    half, evenly = (
        OpenLoopResult(50, 100, statuses[name], 50, percentiles([0.01]), 1.0, 0.1)
        for name in ("half", "evenly")
    )
    storm = ClosedLoopResult(1024, 80, refused=900, lost=lost, p50=1, p99=1)
    return Round(
        100,
        half,
        evenly,
        PacedResult(200, 90, statuses["twice"]),
        RetryStorm(storm, Counter(statuses["storm"]), live_p99=100),
    )


@pytest.mark.parametrize(
    ("changes", "forbidden"),
    [
        ({"half": {"503": 100}}, "{'503': 100}"),
        ({"evenly": {"200": 99, "given up": 1}}, "{'given up': 1}"),
        ({"twice": {"200": 450, "429": 300}}, "{'429': 300}"),
        ({"storm": {"200": 400, "408": 900}}, "{'408': 900}"),
        ({"lost": 2}, "{'lost': 2}"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_overload_misses_its_criteria_by_one_response_of_another_status(
    changes: dict[str, Any], forbidden: str
) -> None:
    assert meets_criteria([measured_round()])
    rounds = [measured_round(), measured_round(**changes), measured_round()]
    assert not meets_criteria(rounds)
    assert forbidden in overload_record(rounds, "On a machine.").finding


def test_services_on_both_cores_take_turns_in_another_order_each_round_and_are_idle_before(
    tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Load:
        def __init__(self, *_: object) -> None:
            pass

        def closed_loop(self, target: Target, connections: int, _: int) -> ClosedLoopResult:
            events.append(target.path)
            return ClosedLoopResult(connections, 1.0, 0, 0, 1.0, 1.0)

    class Running:
        def suspend(self) -> None:
            pass

        def resume(self) -> None:
            pass

        def wait_until_idle(self) -> None:
            events.append("idle")

    class Benchmark(OverloadBenchmark):
        def _start(
            self, _: ExitStack, name: str, __: int, ___: str, ____: Sequence[str]
        ) -> tuple[Any, Target]:
            return Running(), Target(1, name, Content({}, b""))

    monkeypatch.setattr(overload, "LoadGenerator", Load)
    setup = Setup(open_bundle(models_folder / "digits" / "1"), "0", "1", 1, {}, "", None)
    Benchmark(setup, Path("python"), tmp_path, 1).on_both_cores(4, "0,1")
    turns = list(zip(events[::3], events[1::3], events[2::3], strict=True))
    assert all(first == second and idle == "idle" for first, idle, second in turns)
    rounds = [[name for name, *_ in turns[start : start + 4]] for start in range(0, 16, 4)]
    assert len({order[0] for order in rounds}) == 4
    assert all(sorted(order) == sorted(rounds[0]) for order in rounds)


def test_parse_h2load_refuses_output_without_counts() -> None:
    with pytest.raises(LoadGeneratorError, match="connect failed"):
        parse_h2load("connect failed", rate=1, seconds=1)


def test_target_message_is_a_whole_http_request() -> None:
    target = Target(8300, "/predict", Content({"Content-Type": "application/json"}, b"{}"))
    head, _, body = target.message.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /predict HTTP/1.1"
    assert set(lines[1:]) == {
        "Host: 127.0.0.1:8300",
        "Content-Length: 2",
        "Content-Type: application/json",
    }
    assert body == b"{}"
