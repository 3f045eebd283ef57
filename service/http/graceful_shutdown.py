"""uvicorn's server, with a shutdown that loses no request and does not hang. Knows no route."""

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import parent_process
from types import FrameType
from typing import Any

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from service.http import listeners
from service.http.http_protocol import HttpProtocol

logger = structlog.stdlib.get_logger("service")

_BACKLOG_SECONDS = 1.0
"""The longest that a shutdown waits for connections in the backlog to be accepted."""
_POLL_SECONDS = 0.01
_ACCEPTED_PER_ITERATION = 16
"""Connections accepted in one iteration of the event loop, by all workers together.

With fewer, a burst of connections delays later ones: where iterations are long, they wait in the
backlog behind it.
"""
_OVERTIME_SECONDS = 1.0
"""How long after the grace period the process is ended; a supervisor waits a little longer."""
_FORCED_EXIT_STATUS = 1


class GracefulServer(uvicorn.Server):
    """Serves one process; on shutdown it answers the connections that have begun."""

    def __init__(
        self, config: uvicorn.Config, is_signalled: Callable[[], bool] = lambda: False
    ) -> None:
        """Take uvicorn's configuration.

        is_signalled: whether a signal to end came before uvicorn handled signals.
        """
        super().__init__(config)
        self._is_signalled = is_signalled

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections.

        sockets: the public listener, then the control listeners.
        """
        if self._is_signalled():
            self.should_exit = True
            return
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        self.servers = []
        for index, listener in enumerate(sockets or ()):
            create_protocol = partial(self._create_protocol, is_control=index > 0)
            if listener.family == socket.AF_UNIX:
                listener.setblocking(False)
                server = await loop.create_unix_server(
                    create_protocol, sock=listener, backlog=listeners.BACKLOG
                )
                self.servers.append(server)
                continue
            # The event loop accepts one connection from each descriptor in an iteration, and every
            # connection wakes all descriptors of all workers.
            count = max(1, _ACCEPTED_PER_ITERATION // self.config.workers)
            for duplicate in listeners.duplicate(listener, count):
                server = await loop.create_server(
                    create_protocol, sock=duplicate, backlog=listeners.BACKLOG
                )
                self.servers.append(server)
        self.started = True

    def _create_protocol(self, *, is_control: bool) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class  # FastPathProtocol, or HttpProtocol without it
        protocol: HttpProtocol = make(self.config, self.server_state, self.lifespan.state)
        protocol.is_control = is_control
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections in the backlog and no more, answer all, end the application."""
        self.server_state.is_draining = True  # type: ignore[attr-defined]
        if parent_process() is None:  # the workers share their listeners; the supervisor does this
            for listener in sockets or ():
                listeners.refuse_new_connections(listener)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_for_empty_backlog(sockets or ())
        await super().shutdown(sockets)

    async def _wait_for_empty_backlog(self, sockets: Sequence[socket.socket]) -> None:
        await asyncio.sleep(_POLL_SECONDS)  # a handshake may not be complete yet
        with suppress(TimeoutError):
            async with asyncio.timeout(_BACKLOG_SECONDS):
                while any(map(listeners.backlog_length, sockets)):
                    await asyncio.sleep(_POLL_SECONDS)
        await asyncio.sleep(0)  # lets the last accepted connections reach their protocols

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown, and start the watchdog that ends the process if it hangs."""
        if not self.should_exit:
            start_exit_watchdog(self.config.timeout_graceful_shutdown or 0)
        super().handle_exit(sig, frame)


def start_exit_watchdog(
    grace_seconds: float, kill_workers: Callable[[], None] | None = None
) -> None:
    """End this process soon after the grace period, even if a lock, a disk or a run hangs.

    kill_workers: for a supervisor, which first gives the workers' own watchdogs time to act.
    """

    def force_exit() -> None:
        time.sleep(grace_seconds + _OVERTIME_SECONDS)
        if kill_workers is not None:
            time.sleep(_OVERTIME_SECONDS / 2)
            kill_workers()
        logger.error("end forced", reason="something still hung after the grace")
        logging.shutdown()  # waits at most a second for the log lines to be written
        os._exit(_FORCED_EXIT_STATUS)

    threading.Thread(target=force_exit, name="watchdog", daemon=True).start()
