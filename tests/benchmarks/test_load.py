import pytest

from benchmarks.serving.load import LoadGeneratorError, Target, parse_h2load, parse_wrk
from benchmarks.serving.overload import server_errors
from benchmarks.serving.payloads import Content


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


def test_server_errors_are_read_from_the_metrics_of_the_service() -> None:
    line = 'dropserve_requests_total{{method="POST",route="/predict",status="{}"}} {}\n'
    counts = "".join(line.format(*each) for each in ((200, 9.0), (503, 7.0), (500, 2.0)))
    assert server_errors(counts) == {"500": 2}


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
