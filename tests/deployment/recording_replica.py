"""A stand-in for a replica of the service: it records what a proxy sends, and can misbehave."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Behaviour = Literal["answers", "hangs up", "is overloaded"]


@dataclass(frozen=True)
class Received:
    """One request, as it arrived."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    """With names in lower case, in their order."""
    body_length: int

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]


@dataclass
class RecordingReplica:
    """What one replica has received, health checks left out, and how it answers."""

    behaviour: Behaviour = "answers"
    port: int = 0
    received: list[Received] = field(default_factory=list)


@contextmanager
def recording_replica(behaviour: Behaviour = "answers") -> Iterator[RecordingReplica]:
    """Listen on a free port of 127.0.0.1; health checks are always answered with 200."""
    replica = RecordingReplica(behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(replica))
    server.daemon_threads = True
    replica.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield replica
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(replica: RecordingReplica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health/ready":
                self._answer(200)
            else:
                self._take(0)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            self._take(length)

        def _take(self, body_length: int) -> None:
            headers = [(name.lower(), value) for name, value in self.headers.items()]
            replica.received.append(Received(self.command, self.path, headers, body_length))
            if replica.behaviour == "hangs up":
                self.close_connection = True
            else:
                self._answer(503 if replica.behaviour == "is overloaded" else 200)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    return Handler
