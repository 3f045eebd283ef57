"""The requests, parsers and reports of the programs in benchmarks/reliability."""

from pathlib import Path

import pytest

from benchmarks.reliability.attackers import attacks
from benchmarks.reliability.bombs import gzip_bombs
from benchmarks.reliability.clients import ClientStats
from benchmarks.reliability.framings import framings, inner_request
from benchmarks.reliability.fuzz_requests import Fuzzer, good_bodies, good_request, replace_id
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.smuggling import h11_accepts
from benchmarks.reliability.wire import complete_length, parse_responses, request

RESPONSE = b"HTTP/1.1 200 OK\r\nX-Request-ID: one\r\nContent-Length: 2\r\n\r\nhi"


def test_framings_are_a_hundred_and_contain_the_inner_request() -> None:
    inner = inner_request("hidden")
    found = framings("/predict", inner)
    assert len(found) >= 100
    for each in found:
        assert all(b"".join(pieces) == each.head + each.body for pieces in each.writes.values())
        if "chunks of seven" not in each.name:
            assert inner in each.body


def test_h11_refuses_a_space_before_the_colon() -> None:
    assert h11_accepts(request("POST", "/", b"body"))
    assert not h11_accepts(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")


def test_parse_responses_reads_lengths_and_chunks() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    found = parse_responses(RESPONSE + chunked + b"HTTP/1.1 200 OK\r\nContent")
    assert [(each.status, each.body, each.request_id) for each in found] == [
        (200, b"hi", "one"),
        (200, b"hi", ""),
    ]


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_complete_length_is_0_until_the_last_byte(before: bytes) -> None:
    data = before + RESPONSE
    assert [complete_length(data[:end]) for end in range(len(data))] == [0] * len(data)
    assert complete_length(data + b"more") == len(data)


def test_fuzzer_repeats_itself_for_the_same_seed() -> None:
    first, second = Fuzzer(1), Fuzzer(1)
    for _ in range(50):
        assert first.well_framed("a") == second.well_framed("a")
        assert first.badly_framed("a") == second.badly_framed("a")
    message = first.well_framed("a")
    assert b"".join(first.split(message)) == message


def test_well_framed_request_has_the_right_content_length() -> None:
    fuzzer = Fuzzer(2)
    for _ in range(200):
        head, _, body = fuzzer.well_framed("a").partition(b"\r\n\r\n")
        assert int(head.rpartition(b"Content-Length: ")[2]) == len(body)


def test_good_requests_contain_their_id_and_differ() -> None:
    bodies = good_bodies()
    assert len({good_request(each, "one") for each in bodies}) == len(bodies)
    assert b'"one"' in good_request(bodies[0], "one")
    assert replace_id(b'{"id":"one"}', "one") == replace_id(b'{"id":"two"}', "two")


def test_gzip_bombs_are_small() -> None:
    assert all(len(bomb()) < 20_000 for bomb in gzip_bombs().values())


def test_names_of_attacks_contain_no_comma() -> None:
    assert not [name for name in attacks() if "," in name]


def test_client_stats_rank_a_loss_worse_than_any_status() -> None:
    stats = ClientStats()
    stats.counts.update({"200": 5, "503": 1, "sent": 9, "refused": 2})
    assert stats.worst == "503"
    stats.counts["lost: closed"] += 1
    assert (stats.worst, stats.lost, stats.good) == ("lost: closed", 1, 5)


def test_report_is_inserted_first_and_a_missed_criterion_is_status_1(tmp_path: Path) -> None:
    file = tmp_path / "reliability.md"
    file.write_text("# Head\n\n## Records\n\nNewest first.\n\n### older\n")
    criteria = [Criterion("losses", "1", "0", is_met=False)]
    report = Report("Title", "setting.", ("a",), [("b",)], criteria)
    assert report.status == 1
    report.add_to(file, "command")
    text = file.read_text()
    assert text.index("Newest first.") < text.index("Title") < text.index("### older")
    assert "| losses | 1 | 0 | **missed** |" in text
