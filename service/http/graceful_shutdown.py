"""uvicorn's server, with a shutdown that loses no request and does not hang. Knows no route.

At SIGTERM the process drains: it is not ready any more, but answers all requests, and closes each
connection behind its next response. After the drain delay, if there is one, it shuts down: it
accepts no more connections, finishes the requests in flight, and ends. Another signal, or SIGINT,
shuts down at once. A worker drains until its supervisor tells it to end.
"""

import asyncio
import logging
import os
import signal
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
from service.http.lifespan_state import HTTP_CONTEXT, HttpContext
from service.http.tls_connection import TlsConnection

logger = structlog.stdlib.get_logger("service")

_BACKLOG_SECONDS = 1.0
"""The longest that a shutdown waits for connections in the backlog to be accepted."""
_POLL_SECONDS = 0.01
_CERTIFICATE_POLL_SECONDS = 0.1
_ACCEPTED_PER_ITERATION = 16
"""Connections accepted in one iteration of the event loop, by all workers together.

With fewer, a burst of connections delays later ones: where iterations are long, they wait in the
backlog behind it.
"""
_OVERTIME_SECONDS = 1.0
"""How long after the grace period the process is ended; a supervisor waits a little longer."""
_FORCED_EXIT_STATUS = 1
_SUPERVISOR_SECONDS = 2.0
"""How long a worker drains beyond the delay if its supervisor does not tell it to end."""


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, with the drain delay."""

    drain_delay_seconds = 0.0
    """How long requests are accepted after SIGTERM."""


class GracefulServer(uvicorn.Server):
    """Serves one process; on shutdown it answers the connections that have begun."""

    config: ServerConfig

    def __init__(
        self, config: ServerConfig, is_signalled: Callable[[], bool] = lambda: False
    ) -> None:
        """Take the configuration.

        is_signalled: whether a signal to end came before uvicorn handled signals.
        """
        super().__init__(config)
        self._is_signalled = is_signalled
        self._drain_until: float | None = None
        """When draining ends, seconds of `time.monotonic`; None before it begins."""
        self._is_drain_reported = False

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
        await self._wait_for_certificate()
        if self.should_exit:  # a signal came meanwhile; uvicorn ends what has started alone
            await self.lifespan.shutdown()
            return
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

    async def _wait_for_certificate(self) -> None:
        """Accept no connection while there is no certificate; other workers may have one."""
        certificate = self._context.certificate
        while certificate and certificate.context is None and not self.should_exit:
            await asyncio.sleep(_CERTIFICATE_POLL_SECONDS)

    @property
    def _context(self) -> HttpContext:
        context: HttpContext = self.lifespan.state[HTTP_CONTEXT]
        return context

    def _create_protocol(self, *, is_control: bool) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class  # FastPathProtocol, or HttpProtocol without it
        protocol: HttpProtocol = make(self.config, self.server_state, self.lifespan.state)
        protocol.is_control = is_control
        certificate = self._context.certificate
        if is_control or certificate is None:
            return protocol
        return TlsConnection(protocol, certificate)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections in the backlog and no more, answer all, end the application."""
        self._mark_draining()
        self.server_state.is_shutting_down = True  # type: ignore[attr-defined]
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
        """Drain at the first SIGTERM; shut down at any other signal, or if there is no delay.

        In a worker further SIGTERMs change nothing: an init system may send it to all processes.
        SIGINT cuts off the requests in flight only behind another signal, not behind `end` as in
        uvicorn: a terminal sends it to all processes, and the supervisor may be faster.
        """
        is_term, delay = sig == signal.SIGTERM, self.config.drain_delay_seconds
        if is_term and self._drain_until is not None and parent_process() is not None:
            return
        if is_term and delay > 0 and self.started and self._drain_until is None:
            self._drain(delay)
            return
        # `end` may run inside any call below, so that nothing here may depend on `should_exit`.
        if sig == signal.SIGINT and self._captured_signals:
            self.force_exit = True
        self._captured_signals.append(sig)
        self._mark_draining()
        self.end()

    def end(self) -> None:
        """Shut down at once, as a supervisor tells a worker; a signal handler may call this."""
        if not self.should_exit:
            self.should_exit = True
            start_exit_watchdog(self._grace_seconds)

    @property
    def _grace_seconds(self) -> float:
        return self.config.timeout_graceful_shutdown or 0

    def _drain(self, seconds: float) -> None:
        if parent_process() is not None:
            seconds += _SUPERVISOR_SECONDS
        self._mark_draining()
        self._drain_until = time.monotonic() + seconds
        start_exit_watchdog(seconds + self._grace_seconds)

    def _mark_draining(self) -> None:
        """Make health checks fail, and connections close behind their next response."""
        if self.started and HTTP_CONTEXT in self.lifespan.state:
            self.lifespan.state[HTTP_CONTEXT].drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second; return whether to shut down."""
        if await super().on_tick(counter):
            return True
        if self._drain_until is None:
            return False
        self._report_draining()
        if time.monotonic() >= self._drain_until:
            self.should_exit = True  # never False: a signal may just have set it
        return self.should_exit

    def _report_draining(self) -> None:
        """Log that draining has begun, once, and show it in the metrics."""
        if self._is_drain_reported:
            return
        self._is_drain_reported = True
        self.lifespan.state[HTTP_CONTEXT].drain.report()
        if parent_process() is None:
            logger.info("draining", seconds=self.config.drain_delay_seconds)


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
