"""Runs the application on a real port, for tests that decide on every byte of a connection."""

import asyncio
import http.client
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from service.http.fast_path.fast_path_protocol import FastPathProtocol
from service.http.http_protocol import HttpProtocol
from service.http.lifespan_state import HTTP_CONTEXT
from service.http.tls_connection import TlsConnection
from tests.service.serving import TIMEOUT_SECONDS, Application

CLOSED = b""
KEEP_ALIVE_SECONDS = 60


class RecordingProtocol(FastPathProtocol):
    """Records which path each request takes."""

    paths: list[str]
    received = b""
    """The bytes of the last request."""
    parsed = 0
    """How many heads the parser has read."""

    def answered(self) -> None:
        """Do nothing; a test may replace this to run code before the fast path answers."""

    def data_received(self, data: bytes) -> None:
        self.received += data
        super().data_received(data)

    def _answer(self, *arguments: Any) -> None:
        self.paths.append("fast")
        self.answered()
        self.received = b""
        super()._answer(*arguments)

    def on_headers_complete(self) -> None:
        self.parsed += 1
        super().on_headers_complete()

    def _begin_with_asgi(self) -> None:
        self.paths.append("asgi")
        super()._begin_with_asgi()


@dataclass
class Listening:
    """An application that listens on a port, by TLS if its settings name a certificate."""

    application: Application
    port: int
    state: ServerState
    paths: list[str] = field(default_factory=list)
    connections: list[RecordingProtocol] = field(default_factory=list)

    clients: list["Client"] = field(default_factory=list)

    def connect(self, tls: ssl.SSLContext | None = None) -> "Client":
        """Open a connection; with a client's context for TLS, complete its handshake."""
        connection = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_hostname="localhost")
        self.clients.append(Client(connection))
        return self.clients[-1]

    def call(self, function: Any, *arguments: Any) -> Any:
        return self.application.portal.call(function, *arguments)

    def has_received(self, data: bytes) -> bool:
        """Return whether exactly `data` has arrived of the newest request."""
        return self.connections[-1].received == data

    def until(self, has_happened: Callable[[], bool]) -> None:
        """Run the event loop until `has_happened` returns true."""

        async def poll() -> None:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not has_happened():
                    await asyncio.sleep(0)

        self.call(poll)


@dataclass
class RawResponse:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """A client that sends and reads the bytes of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def read_response(self) -> RawResponse:
        _, status, *_ = self._received.readline().split()
        headers = http.client.parse_headers(self._received)
        return RawResponse(
            int(status), headers, self._received.read(int(headers["Content-Length"]))
        )

    def read_line(self) -> bytes:
        return self._received.readline()

    def reset(self) -> None:
        """Close the connection with a reset, as a client that is killed may."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def is_closed(self) -> bool:
        return self._received.read(1) == CLOSED

    def close(self) -> None:
        self._received.close()
        self._connection.close()


@contextmanager
def listening(
    application: Application, protocol: type[HttpProtocol] | None = None
) -> Iterator[Listening]:
    config = uvicorn.Config(
        application.app,
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()
    found = Listening(application, 0, state)

    def create_protocol() -> asyncio.Protocol:
        if protocol is not None:
            return protocol(config, state, dict(application.state))
        made = RecordingProtocol(config, state, dict(application.state))
        made.paths = found.paths
        found.connections.append(made)
        certificate = application.state[HTTP_CONTEXT].certificate
        return made if certificate is None else TlsConnection(made, certificate)

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(create_protocol, "127.0.0.1", 0)

    async def stop() -> None:
        server.close()
        for each in found.connections:
            each.transport.abort()

    server = application.portal.call(listen)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        for client in found.clients:
            client.close()
        application.portal.call(stop)
