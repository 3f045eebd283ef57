"""The thread that writes log lines, over real pipes."""

import fcntl
import os
import time
from collections.abc import Iterator

import pytest

from service.observability.log_writer import FLUSH_SECONDS, LineWriter
from tests.service.serving import PATIENCE_SECONDS

LINE = b"a line of the log\n"


def say_dropped(count: int) -> bytes:
    return b"dropped %d\n" % count


class Pipe:
    """A pipe as small as Linux has them: 4,096 bytes."""

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


def test_lines_come_whole_and_in_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, say_dropped)
    lines = [b"%d\n" % number for number in range(500)]
    for line in lines:
        writer.put(line)
    assert pipe.read_until(b"\n499\n") == b"".join(lines)
    writer.close()


def test_nobody_waits_for_a_reader_and_what_was_dropped_is_said_afterwards(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, say_dropped, max_waiting_bytes=100_000)
    asked = 20_000
    for _ in range(asked):  # more than the pipe and the queue hold: this returns all the same
        writer.put(LINE)
    told = b""
    while b"dropped" not in told or not told.endswith(b"\n"):
        told += os.read(pipe.reading, 65_536)
    *lines, last = told.splitlines()
    assert set(lines) == {LINE.strip()}
    assert last == b"dropped %d" % (asked - len(lines))
    assert len(lines) * len(LINE) <= 100_000
    writer.put(b"and on\n")
    assert pipe.read_until(b"on\n") == b"and on\n"
    writer.close()


def test_a_flush_waits_for_what_is_read_and_not_for_what_is_not(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, say_dropped)
    writer.put(LINE)
    writer.flush()
    os.set_blocking(pipe.reading, False)
    assert os.read(pipe.reading, 100) == LINE
    writer.put(b"x" * 2 * pipe.capacity)
    started = time.monotonic()
    writer.flush()
    assert FLUSH_SECONDS <= time.monotonic() - started < PATIENCE_SECONDS
    writer.close()


def test_a_reader_that_has_gone_costs_nothing(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, say_dropped)
    pipe.stop_reading()
    writer.put(LINE)
    writer.flush(PATIENCE_SECONDS)
    started = time.monotonic()
    writer.put(LINE)
    writer.flush(PATIENCE_SECONDS)
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_pipe_that_does_not_wait_gets_every_byte(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing, say_dropped)
    for _ in range(1_000):
        writer.put(LINE)
    writer.put(b"end\n")
    assert pipe.read_until(b"end\n") == 1_000 * LINE + b"end\n"
    writer.close()


def test_a_full_disk_loses_lines_and_stops_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(descriptor, say_dropped, max_waiting_bytes=1_000)
    for _ in range(1_000):
        writer.put(LINE)
    writer.flush(0.01)
    writer.close()
    os.close(descriptor)


def test_without_a_standard_output_nothing_is_kept() -> None:
    writer = LineWriter(None, say_dropped)
    for _ in range(10):
        writer.put(LINE)
    writer.flush(PATIENCE_SECONDS)
    writer.close()
