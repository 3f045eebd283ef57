"""The service under test as its users run it: `python -m service`, a process of its own."""

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
from tests.service.serving import PATIENCE_SECONDS

# uvicorn's workers leave their standard input to the interpreter's end.
WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]
COMMAND = [sys.executable, *WARNINGS, "-m", "service"]


class ServiceProcess:
    """A running `python -m service`; its log is read as it is written."""

    def __init__(self, models_folder: Path, *options: str) -> None:
        given = ["--port", "0", "--log-format", "json", "--models-folder", str(models_folder)]
        self._process = subprocess.Popen(
            [*COMMAND, *given, *options],
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
        """Wait until the log has so many lines of an event; return the last of them."""

        def there() -> bool:
            return len(self.logged(event)) >= count

        with self._written:
            assert self._written.wait_for(there, PATIENCE_SECONDS), self._said()
        return self.logged(event)[count - 1]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self._log if line["event"] == event]

    def wait_until_listening(self) -> None:
        listening = self.wait_for("listening")
        self.url = listening["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.control_listeners = listening["control"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)

    def client(self) -> httpx.Client:
        """Every request of it makes a connection of its own."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, limits=limits, timeout=PATIENCE_SECONDS)

    def control(self) -> httpx.Client:
        """A client of the control listener."""
        transport = httpx.HTTPTransport(uds=self.control_listeners[0])
        return httpx.Client(
            transport=transport, base_url="http://localhost", timeout=PATIENCE_SECONDS
        )

    def post(self, route: str, body: bytes, content_type: str) -> httpx.Response:
        with self.client() as client:
            return client.post(route, content=body, headers={"Content-Type": content_type})

    def workers(self) -> list[int]:
        """Process ids of the workers, as Linux tells them."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    @contextmanager
    def only(self, worker: int) -> Iterator[None]:
        """Hold every other worker still, so that this one alone can answer."""
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
        """As a terminal does: Ctrl-C reaches the workers too."""
        os.killpg(self.pid, number)

    def wait_until_refusing(self) -> None:
        """Wait until new connections are refused."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # accepted by the kernel just before
                continue
        raise AssertionError(f"still accepts connections\n{self._said()}")

    def exit_status(self) -> int:
        """Wait for the end; a service that wrote to its standard error has failed."""
        status = self._process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        assert not self._errors, "".join(self._errors)
        return status

    def end(self) -> None:
        """Leave nothing behind, however the test went."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
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

    def _said(self) -> str:
        return "\n".join([*map(str, self._log), *self._errors])


class SlowRequest:
    """A POST /predict whose body the server waits for: in flight for as long as a test wants."""

    def __init__(self, service: ServiceProcess, body: bytes) -> None:
        self._body = body
        self._connection = service.connect()
        self._connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Type: image/png\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        # The server says so when the route asks for the body: the request is in hand.
        said = self._connection.recv(1024)
        assert said == b"HTTP/1.1 100 Continue\r\n\r\n", said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def finish(self) -> tuple[int, bytes]:
        """Send the body; return the answer's status and body."""
        self._connection.sendall(self._body)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        """Read to the end of the connection, which a stopping server closes."""
        answer = b""
        while piece := self._connection.recv(65_536):
            answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        return int(head.split()[1]), body


@contextmanager
def service_process(
    models_folder: Path, *options: str, workers: int = 1
) -> Iterator[ServiceProcess]:
    """Start the service, wait until every worker has its model, and stop it afterwards."""
    process = ServiceProcess(models_folder, "--workers", str(workers), *options)
    try:
        process.wait_until_listening()
        process.wait_for("ready", count=workers)
        yield process
    finally:
        process.end()


def run_service(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` to its end, which a mistake brings at once."""
    return subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
