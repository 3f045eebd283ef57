import pytest

from benchmarks.serving.load import Target, stretch
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
