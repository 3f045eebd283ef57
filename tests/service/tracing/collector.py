"""A collector in this process: it takes OTLP over HTTP by OpenTelemetry's own protobuf package."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.service.serving import TIMEOUT_SECONDS

Value = str | int


class Span:
    """A span as it was received."""

    def __init__(self, message: Any, resource: dict[str, Value]) -> None:
        self.name: str = message.name
        self.kind: int = message.kind
        self.trace_id: str = message.trace_id.hex()
        self.span_id: str = message.span_id.hex()
        self.parent_id: str = message.parent_span_id.hex()
        self.state: str = message.trace_state
        self.start: int = message.start_time_unix_nano
        self.end: int = message.end_time_unix_nano
        self.status: int = message.status.code
        self.attributes = attributes(message.attributes)
        self.links = [(each.trace_id.hex(), each.span_id.hex()) for each in message.links]
        self.resource = resource


class Collector:
    """The spans that were received, and the headers that came with them."""

    def __init__(self) -> None:
        self.url = ""
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        """Cleared: exports hang."""
        self.released.set()
        self.status = 200
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.headers.append(headers)
            for of_resource in request.resource_spans:
                resource = attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self._spans += [Span(each, resource) for each in of_scope.spans]
            self._changed.notify_all()

    def wait_for(self, names: dict[str, int]) -> list[Span]:
        """Return the spans once there are so many of each name."""

        def is_there() -> bool:
            found = [each.name for each in self._spans]
            return all(found.count(name) >= count for name, count in names.items())

        with self._changed:
            assert self._changed.wait_for(is_there, TIMEOUT_SECONDS), self.names()
            return list(self._spans)

    def clear(self) -> None:
        self._spans.clear()

    def names(self) -> list[str]:
        return [each.name for each in self._spans]


def attributes(pairs: Any) -> dict[str, Value]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.released.wait(TIMEOUT_SECONDS)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            if collector.status == 200:
                collector.take(self.path, dict(self.headers), body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            collector.released.set()
            server.shutdown()
