"""The programs that attack the service: what they send, read and write down."""

from pathlib import Path

import pytest

from benchmarks.reliability.attackers import attacks
from benchmarks.reliability.bombs import packed_bombs
from benchmarks.reliability.clients import Seen
from benchmarks.reliability.framings import framings, inner_request
from benchmarks.reliability.fuzz_requests import Fuzzer, as_expected, good_bodies, good_request
from benchmarks.reliability.report import Bar, Report
from benchmarks.reliability.smuggling import h11_accepts
from benchmarks.reliability.wire import answers, complete, request

ANSWER = b"HTTP/1.1 200 OK\r\nX-Request-ID: one\r\nContent-Length: 2\r\n\r\nhi"


def test_there_are_a_hundred_framings_and_each_holds_the_hidden_request() -> None:
    inner = inner_request("hidden")
    found = framings("/predict", inner)
    assert len(found) >= 100
    for each in found:
        assert all(b"".join(pieces) == each.head + each.body for pieces in each.writes.values())
        if "chunks of seven" not in each.name:
            assert inner in each.body


def test_h11_is_as_strict_as_it_is_taken_for() -> None:
    assert h11_accepts(request("POST", "/", b"body"))
    assert not h11_accepts(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")


def test_answers_are_taken_apart() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    found = answers(ANSWER + chunked + b"HTTP/1.1 200 OK\r\nContent")
    assert [(each.status, each.body, each.request_id) for each in found] == [
        (200, b"hi", "one"),
        (200, b"hi", ""),
    ]


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_is_complete_with_its_last_byte(before: bytes) -> None:
    data = before + ANSWER
    assert [complete(data[:end]) for end in range(len(data))] == [0] * len(data)
    assert complete(data + b"more") == len(data)


def test_fuzzed_requests_are_the_same_for_the_same_seed() -> None:
    first, second = Fuzzer(1), Fuzzer(1)
    for _ in range(50):
        assert first.framed("a") == second.framed("a")
        assert first.broken("a") == second.broken("a")
    message = first.framed("a")
    assert b"".join(first.pieces(message)) == message


def test_a_fuzzed_request_ends_where_it_says() -> None:
    fuzzer = Fuzzer(2)
    for _ in range(200):
        head, _, body = fuzzer.framed("a").partition(b"\r\n\r\n")
        assert int(head.rpartition(b"Content-Length: ")[2]) == len(body)


def test_good_requests_carry_their_id_and_differ() -> None:
    bodies = good_bodies()
    assert len({good_request(each, "one") for each in bodies}) == len(bodies)
    assert b'"one"' in good_request(bodies[0], "one")
    assert as_expected(b'{"id":"one"}', "one") == as_expected(b'{"id":"two"}', "two")


def test_bodies_that_unpack_to_much_are_short() -> None:
    assert all(len(bomb()) < 20_000 for bomb in packed_bombs().values())


def test_names_of_attacks_can_be_listed_with_commas() -> None:
    assert not [name for name in attacks() if "," in name]


def test_a_loss_is_worse_than_any_status() -> None:
    seen = Seen()
    seen.counts.update({"200": 5, "503": 1, "sent": 9, "refused": 2})
    assert seen.worst == "503"
    seen.counts["lost: closed"] += 1
    assert (seen.worst, seen.lost, seen.good) == ("lost: closed", 1, 5)


def test_a_record_stands_before_the_others_and_a_missed_bar_is_status_1(tmp_path: Path) -> None:
    file = tmp_path / "reliability.md"
    file.write_text("# Head\n\n## Records\n\nNewest first.\n\n### older\n")
    bars = [Bar("losses", "1", "0", is_kept=False)]
    report = Report("Title", "setting.", ("a",), [("b",)], bars)
    assert report.status == 1
    report.add_to(file, "command")
    text = file.read_text()
    assert text.index("Newest first.") < text.index("Title") < text.index("### older")
    assert "| losses | 1 | 0 | **missed** |" in text
