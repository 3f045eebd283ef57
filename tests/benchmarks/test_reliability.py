"""The requests, parsers, probes and reports of the programs in benchmarks/reliability."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.reliability.attackers import attacks
from benchmarks.reliability.bombs import gzip_bombs
from benchmarks.reliability.clients import ClientStats, load_while
from benchmarks.reliability.feedback import Labelling, wait_for_labels
from benchmarks.reliability.framings import framings, inner_request
from benchmarks.reliability.fuzz_requests import Fuzzer, good_bodies, good_request, replace_id
from benchmarks.reliability.health_probe import PROBE_SECONDS, HealthProbe, ProbeStats
from benchmarks.reliability.hostile import AttackResult, Interval
from benchmarks.reliability.program import NOTES_FILE
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.smuggling import h11_accepts
from benchmarks.reliability.wire import complete_length, parse_responses, request
from benchmarks.serving.servers import ServerFailedError

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


def probe_server(response: bytes, held: int) -> ProbeStats:
    """Probe a server that gives no response before `held` requests have come."""
    stats = ProbeStats()

    async def probe() -> None:
        come: list[asyncio.StreamReader] = []
        all_come = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            come.append(reader)
            if len(come) == held:
                all_come.set()
            await all_come.wait()
            writer.write(response)
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            await load_while([HealthProbe(address, stats, timeout=30)], all_come.wait)

    asyncio.run(probe())
    return stats


def test_probe_sends_on_while_no_response_comes_and_measures_from_when_each_request_was_due() -> (
    None
):
    held = 5
    waits = sorted(probe_server(RESPONSE, held).waits, reverse=True)
    assert len(waits) >= held
    for place, wait in enumerate(waits[:held]):
        assert wait >= (held - 1 - place) * PROBE_SECONDS
    assert waits[0] < 30


@pytest.mark.parametrize(
    "response",
    [b"", RESPONSE[:-1], b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"],
    ids=["none", "half", "503"],
)
def test_request_of_the_probe_without_a_whole_200_counts_as_its_timeout(response: bytes) -> None:
    stats = probe_server(response, held=2)
    assert stats.waits
    assert stats.p99 == pytest.approx(30_000, rel=0.1)


@pytest.mark.parametrize(("slow", "misses"), [(1, []), (4, ["health"])])
def test_attack_misses_its_criterion_if_one_stall_is_longer_than_a_hundredth_of_the_interval(
    slow: int, misses: list[str]
) -> None:
    good = ClientStats()
    good.counts["200"] = 480
    before = Interval(10, good, ProbeStats([0.001] * 200))
    during = Interval(10, good, ProbeStats([0.001] * (200 - slow) + [0.4] * slow))
    result = AttackResult("retriers", before, during, before, 100.0, False, False, {})
    assert result.misses == misses


def test_waiting_for_labels_ends_with_a_sentence_when_the_service_acknowledges_none() -> None:
    with pytest.raises(ServerFailedError, match="acknowledged no label for 0 seconds, after 0 of"):
        asyncio.run(wait_for_labels(Labelling(10), 10, patience=0))


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


def test_report_can_be_added_to_the_records_of_this_project(tmp_path: Path) -> None:
    file = tmp_path / NOTES_FILE.name
    file.write_text(NOTES_FILE.read_text())
    Report("Title", "setting.", ("a",), [("b",)], []).add_to(file, "command")
    assert len(file.read_text()) > len(NOTES_FILE.read_text())
