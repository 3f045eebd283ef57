"""Attacks on the log: standard output that nobody reads, and requests that forge log lines."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import ROOT
from tests.service.process import COMMAND
from tests.service.serving import TIMEOUT_SECONDS

LONG_PATH = "x" * 2_000
REQUESTS = 400
"""With `LONG_PATH`, their log lines are several times as large as a pipe."""


class ServiceWithStdout:
    """A running service whose standard output the test chooses."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port

    def status(self, path: str) -> int:
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            return int(connection.makefile("rb").read().split()[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_SECONDS)


@contextmanager
def service_with_stdout(stdout: int, folder: Path, *options: str) -> Iterator[ServiceWithStdout]:
    """Run the service on a port that is free now, since its log cannot be read for the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--port", str(port), "--models-folder", str(folder), *options]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    service = ServiceWithStdout(process, port)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while not _answers(service):
            assert process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, "it does not answer"
        yield service
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stderr is not None
        process.stderr.close()
        if process.stdout is not None:
            process.stdout.close()


def _answers(service: ServiceWithStdout) -> bool:
    try:
        return service.status("/health/live") == 200
    except (ConnectionError, IndexError):
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_serves_and_exits_while_nobody_reads_standard_output(
    workers: str, tmp_path: Path
) -> None:
    with service_with_stdout(subprocess.PIPE, tmp_path, "--workers", workers) as service:
        for _ in range(REQUESTS):
            assert service.status(f"/{LONG_PATH}") == 404
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 10


def test_service_survives_a_closed_reader_of_standard_output(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with service_with_stdout(writing, tmp_path) as service:
        os.close(writing)
        os.close(reading)
        for _ in range(20):
            assert service.status("/nothing") == 404
        assert service.stop() == 0
        assert service.process.stderr is not None
        assert service.process.stderr.read() == b""


def test_service_starts_with_standard_output_closed(tmp_path: Path) -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMAND, "--host", "192.0.2.1", "--models-folder", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Cannot listen on 192.0.2.1")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_path_can_neither_end_its_log_line_nor_control_a_terminal(
    log_format: str, tmp_path: Path
) -> None:
    forged = "/\r\n2026-01-01T00:00:00Z [info     ] ready\x1b[2J\x9b31m\u2028\u202e\x00\x7f"
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        service_with_stdout(file.fileno(), tmp_path, "--log-format", log_format) as service,
    ):
        assert service.status(quote(forged)) == 404
        assert service.stop() == 0
    text = log.read_bytes().decode()
    assert [line for line in text.splitlines() if "ready" in line and "path" not in line] == []
    assert "2026-01-01T00:00:00Z" in text
    assert text.replace("\n", "").isprintable()
