import pytest

from benchmarks.serving.load import LoadFailedError, Target, paced, stretch
from benchmarks.serving.overload import server_errors
from benchmarks.serving.payloads import Content


def test_what_wrk_printed_is_read_and_refusals_are_no_answers() -> None:
    said = (
        "Running 2s test @ http://127.0.0.1:8300/\n  1 threads and 32 connections\n"
        '{"requests":1100,"microseconds":2000000,"refused":100,"lost":3,"p50":1.5,"p99":9.25}\n'
    )
    seen = stretch(said, 32)
    assert seen.rate == pytest.approx(500)
    assert (seen.connections, seen.refused, seen.lost, seen.p50, seen.p99) == (
        32,
        100,
        3,
        1.5,
        9.25,
    )


def test_what_h2load_printed_is_read_and_only_good_answers_make_the_rate() -> None:
    said = (
        "requests: 15296 total, 15296 started, 15296 done, 15200 succeeded, 96 failed, "
        "3 errored, 1 timeout\nstatus codes: 15200 2xx, 0 3xx, 0 4xx, 96 5xx\n"
    )
    seen = paced(said, rate=8_000, seconds=4)
    assert seen.offered == 8_000
    assert seen.rate == pytest.approx(3_800)
    assert seen.answers == {"2xx": 15200, "5xx": 96, "lost": 4}


def test_a_server_error_among_refusals_is_seen_in_the_counts_of_the_service() -> None:
    line = 'dropserve_requests_total{{method="POST",route="/predict",status="{}"}} {}\n'
    counts = "".join(line.format(*each) for each in ((200, 9.0), (503, 7.0), (500, 2.0)))
    assert server_errors(counts) == {"500": 2}


def test_what_h2load_did_not_count_is_no_measurement() -> None:
    with pytest.raises(LoadFailedError, match="connect failed"):
        paced("connect failed", rate=1, seconds=1)


def test_a_request_as_it_goes_over_the_wire() -> None:
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
