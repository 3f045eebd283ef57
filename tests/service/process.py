"""Runs the service under test as its users do: `python -m service` in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from tests.conftest import ROOT
from tests.service.serving import TIMEOUT_SECONDS

# uvicorn's workers do not close their standard input before the interpreter ends.
WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]
COMMAND = [sys.executable, *WARNINGS, "-m", "service"]


class ServiceProcess:
    """A running `python -m service`, whose log is read as it is written."""

    def __init__(self, models_folder: Path, *options: str, port: int = 0) -> None:
        default_options = [
            "--port",
            str(port),
            "--log-format",
            "json",
            "--models-folder",
            str(models_folder),
        ]
        self._process = subprocess.Popen(
            [*COMMAND, *default_options, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._log: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._written = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_log, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.url = ""
        self.port = 0
        self.control_listeners: list[str] = []

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until the log has `count` lines of an event; return the last of them."""

        def has_count() -> bool:
            return len(self.logged(event)) >= count

        with self._written:
            assert self._written.wait_for(has_count, TIMEOUT_SECONDS), self._output()
        return self.logged(event)[count - 1]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self._log if line["event"] == event]

    def wait_until_listening(self) -> None:
        listening = self.wait_for("listening")
        self.url = listening["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.control_listeners = listening["control"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS)

    def client(self) -> httpx.Client:
        """Return a client that opens a new connection for each request."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, limits=limits, timeout=TIMEOUT_SECONDS)

    def control(self) -> httpx.Client:
        """Return a client of the control listener."""
        transport = httpx.HTTPTransport(uds=self.control_listeners[0])
        return httpx.Client(
            transport=transport, base_url="http://localhost", timeout=TIMEOUT_SECONDS
        )

    def post(self, route: str, body: bytes, content_type: str) -> httpx.Response:
        with self.client() as client:
            return client.post(route, content=body, headers={"Content-Type": content_type})

    def workers(self) -> list[int]:
        """Return the process ids of the workers, as Linux lists them."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    @contextmanager
    def only(self, worker: int) -> Iterator[None]:
        """Stop every other worker (SIGSTOP), so that only this one can answer."""
        others = [each for each in self.workers() if each != worker]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            yield
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to the workers too, as Ctrl-C in a terminal does."""
        os.killpg(self.pid, number)

    def wait_until_refusing(self) -> None:
        """Wait until new connections are refused."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # accepted by the kernel just before
                continue
        raise AssertionError(f"still accepts connections\n{self._output()}")

    def exit_status(self) -> int:
        """Wait for the end and return the status; fail if the service wrote to standard error."""
        status = self._process.wait(TIMEOUT_SECONDS)
        for reader in self._readers:
            reader.join(TIMEOUT_SECONDS)
        assert not self._errors, "".join(self._errors)
        return status

    def end(self) -> None:
        """Kill all processes of the service and close the pipes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT_SECONDS)
        for reader in self._readers:
            reader.join(TIMEOUT_SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._written:
                self._log.append(json.loads(line))
                self._written.notify_all()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)

    def _output(self) -> str:
        return "\n".join([*map(str, self._log), *self._errors])


class SlowRequest:
    """A POST /predict that stays in flight until the test sends its body."""

    def __init__(self, service: ServiceProcess, body: bytes) -> None:
        self._body = body
        self._connection = service.connect()
        self._connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Type: image/png\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        # The server sends this when the route reads the body: the request is in flight.
        interim = self._connection.recv(1024)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n", interim

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def finish(self) -> tuple[int, bytes]:
        """Send the body; return the response's status and body."""
        self._connection.sendall(self._body)
        return self.read_response()

    def read_response(self) -> tuple[int, bytes]:
        """Read the response to the end of the connection, which a server that drains closes."""
        response = b""
        while piece := self._connection.recv(65_536):
            response += piece
        head, _, body = response.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        return int(head.split()[1]), body


@contextmanager
def service_process(
    models_folder: Path, *options: str, workers: int = 1, port: int = 0
) -> Iterator[ServiceProcess]:
    """Start the service, wait until every worker has its model, and stop it afterwards."""
    process = ServiceProcess(models_folder, "--workers", str(workers), *options, port=port)
    try:
        process.wait_until_listening()
        process.wait_for("ready", count=workers)
        yield process
    finally:
        process.end()


def run_service(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` with options that make it exit at once."""
    return subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
