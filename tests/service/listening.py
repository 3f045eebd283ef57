"""The application behind a real port, on the loop of the test, which decides on every byte."""

import asyncio
import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from service.http.fast_path.protocol import FastPathProtocol
from tests.service.serving import PATIENCE_SECONDS, Application

CLOSED = b""
KEEP_ALIVE_SECONDS = 60


class Watched(FastPathProtocol):
    """Says which road each request takes."""

    roads: list[str]
    received = b""
    """Of the last request."""
    parsed = 0
    """Heads."""

    def answered(self) -> None:
        """Replaced by a test that wants to know."""

    def data_received(self, data: bytes) -> None:
        self.received += data
        super().data_received(data)

    def _answer(self, *arguments: Any) -> None:
        self.roads.append("express")
        self.answered()
        self.received = b""
        super()._answer(*arguments)

    def on_headers_complete(self) -> None:
        self.parsed += 1
        super().on_headers_complete()

    def _begin_with_asgi(self) -> None:
        self.roads.append("usual")
        super()._begin_with_asgi()


@dataclass
class Listening:
    """The application behind a port."""

    application: Application
    port: int
    state: ServerState
    roads: list[str] = field(default_factory=list)
    connections: list[Watched] = field(default_factory=list)

    clients: list["Client"] = field(default_factory=list)

    def connect(self) -> "Client":
        address = "127.0.0.1", self.port
        self.clients.append(Client(socket.create_connection(address, PATIENCE_SECONDS)))
        return self.clients[-1]

    def call(self, function: Any, *arguments: Any) -> Any:
        return self.application.portal.call(function, *arguments)

    def has_received(self, data: bytes) -> bool:
        """Tell whether that is what has come of the newest request."""
        return self.connections[-1].received == data

    def until(self, has_happened: Callable[[], bool]) -> None:
        """Let the loop turn until something has happened."""

        async def turn() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not has_happened():
                    await asyncio.sleep(0)

        self.call(turn)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """A connection whose every byte the test decides on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def answer(self) -> Answer:
        _, status, *_ = self._received.readline().split()
        headers = http.client.parse_headers(self._received)
        return Answer(int(status), headers, self._received.read(int(headers["Content-Length"])))

    def line(self) -> bytes:
        return self._received.readline()

    def is_closed(self) -> bool:
        return self._received.read(1) == CLOSED

    def close(self) -> None:
        self._received.close()
        self._connection.close()


@contextmanager
def listening(application: Application) -> Iterator[Listening]:
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

    def connected() -> Watched:
        made = Watched(config, state, {})
        made.roads = found.roads
        found.connections.append(made)
        return made

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)

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
