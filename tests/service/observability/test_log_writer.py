"""Tests of the thread that writes log lines, over real pipes."""

import fcntl
import os
import time
from collections.abc import Iterator

import pytest

from service.observability.log_writer import FLUSH_SECONDS, LineWriter
from tests.service.serving import TIMEOUT_SECONDS

LINE = b"a line of the log\n"


def format_dropped(count: int) -> bytes:
    return b"dropped %d\n" % count


class Pipe:
    """A pipe of the smallest size that Linux has, 4,096 bytes."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.capacity = fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, end: bytes) -> bytes:
        found = b""
        while not found.endswith(end):
            piece = os.read(self.reading, 65_536)
            assert piece, found
            found += piece
        return found

    def close(self) -> None:
        for descriptor in {self.reading, self.writing} - {-1}:
            os.close(descriptor)

    def stop_reading(self) -> None:
        os.close(self.reading)
        self.reading = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_log_writer_writes_whole_lines_in_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, format_dropped)
    lines = [b"%d\n" % number for number in range(500)]
    for line in lines:
        writer.put(line)
    assert pipe.read_until(b"\n499\n") == b"".join(lines)
    writer.close()


def test_log_writer_drops_lines_that_nobody_reads_and_logs_their_number(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, format_dropped, max_waiting_bytes=100_000)
    line_count = 20_000
    for _ in range(line_count):  # more than pipe and queue hold; `put` returns all the same
        writer.put(LINE)
    content = b""
    while b"dropped" not in content or not content.endswith(b"\n"):
        content += os.read(pipe.reading, 65_536)
    *lines, last = content.splitlines()
    assert set(lines) == {LINE.strip()}
    assert last == b"dropped %d" % (line_count - len(lines))
    assert writer.dropped_lines == line_count - len(lines)
    assert len(lines) * len(LINE) <= 100_000
    writer.put(b"and on\n")
    assert pipe.read_until(b"on\n") == b"and on\n"
    writer.close()


def test_flush_waits_for_a_reader_at_most_its_timeout(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, format_dropped)
    writer.put(LINE)
    writer.flush()
    os.set_blocking(pipe.reading, False)
    assert os.read(pipe.reading, 100) == LINE
    writer.put(b"x" * 2 * pipe.capacity)
    started = time.monotonic()
    writer.flush()
    assert FLUSH_SECONDS <= time.monotonic() - started < TIMEOUT_SECONDS
    writer.close()


def test_log_writer_stops_when_the_reader_closes_the_pipe(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, format_dropped)
    pipe.stop_reading()
    writer.put(LINE)
    writer.flush(TIMEOUT_SECONDS)
    started = time.monotonic()
    writer.put(LINE)
    writer.flush(TIMEOUT_SECONDS)
    assert time.monotonic() - started < TIMEOUT_SECONDS


def test_log_writer_writes_every_byte_to_a_non_blocking_pipe(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing, format_dropped)
    for _ in range(1_000):
        writer.put(LINE)
    writer.put(b"end\n")
    assert pipe.read_until(b"end\n") == 1_000 * LINE + b"end\n"
    writer.close()


def test_log_writer_survives_a_full_disk_and_counts_every_line_as_dropped() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(descriptor, format_dropped, max_waiting_bytes=1_000)
    for _ in range(1_000):
        writer.put(LINE)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while writer.dropped_lines < 1_000 and time.monotonic() < deadline:
        writer.flush(0.01)
    writer.close()
    assert writer.dropped_lines == 1_000
    os.close(descriptor)


def test_log_writer_without_a_descriptor_ignores_lines() -> None:
    writer = LineWriter(None, format_dropped)
    for _ in range(10):
        writer.put(LINE)
    started = time.monotonic()
    writer.flush(TIMEOUT_SECONDS)
    writer.close()
    assert time.monotonic() - started < TIMEOUT_SECONDS
    assert writer.dropped_lines == 0
