"""Settings -> a listening server, one process or several. Knows no route.

SIGTERM and SIGINT: let no new connection begin, answer those that are there within the grace, exit.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
import uvicorn.supervisors.multiprocess as supervisor
from uvicorn.config import STARTUP_FAILURE

from service.http import listeners
from service.http.fast_path.protocol import FastPathProtocol
from service.observability import logs
from service.observability.metrics import MULTIPROCESS_VARIABLE, forget_worker
from service.registry.rollout import forget_processes
from service.settings import CONTROL_FOLDER_VARIABLE, ServiceSettings

logger = structlog.stdlib.get_logger("service")

_WORKER_APP = "service.app:create_worker_app"
_OWN_DESCRIPTORS = 128
"""Open files besides connections: models, logs, decoders, pipes."""
_BACKLOG_SECONDS = 1.0
"""How long connections that wait to be accepted hold up the end."""
_TICK_SECONDS = 0.01
_ACCEPTED_IN_A_TURN = 16
"""Connections: where each turn is long, others wait in the backlog behind a burst of them."""
_OVERTIME_SECONDS = 1.0
"""How long after the grace the process is ended whatever hangs; a supervisor waits a bit longer."""
_HUNG_STATUS = 1
_STANDARD_ERROR = 2
_HEALTHCHECK_SECONDS = 30
"""How long a worker's thread may be silent before the supervisor takes it for dead."""
_HEADERS = [("X-Content-Type-Options", "nosniff")]


def serve(settings: ServiceSettings) -> int:
    """Serve until told to stop; return the exit status."""
    _open_standard_streams()
    logs.configure(settings.log_level, settings.log_format)
    ending = ShutdownSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ending)
    try:
        listener = listeners.listen(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python adds the address
        sys.stderr.write(
            f"Cannot listen on {settings.host} port {settings.port} ({reason}); "
            "choose another with --host and --port.\n"
        )
        return 1
    if settings.control_folder is not None:
        forget_processes(settings.control_folder)
    settings = _within_descriptors(settings)
    with ExitStack() as stack:
        stack.enter_context(listener)
        host, port = listener.getsockname()[:2]
        try:
            control = _listen_for_control(settings, port, stack)
        except OSError as error:
            sys.stderr.write(
                f"Cannot listen for control ({error.strerror or error}); choose another place with "
                "--control-socket or --control-port.\n"
            )
            return 1
        shown = f"[{host}]" if ":" in host else host  # as RFC 3986 has IPv6 addresses
        logger.info(
            "listening",
            url=f"http://{shown}:{port}",
            workers=settings.workers,
            control=[_address(each) for each in control],
        )
        sockets = [listener, *control]
        if settings.workers == 1:
            serve_here(settings, sockets, ending)
        else:
            _serve_in_workers(settings, sockets, ending)
    return 0


def serve_here(
    settings: ServiceSettings, sockets: Sequence[socket.socket], ending: "ShutdownSignal"
) -> None:
    """Serve in this process, unless it was asked to end meanwhile."""
    from service.app import create_app, tune_gc

    server = Server(_config(settings, create_app(settings)))
    tune_gc()
    if not ending.asked:
        server.run(sockets=list(sockets))


def _serve_in_workers(
    settings: ServiceSettings, sockets: Sequence[socket.socket], ending: "ShutdownSignal"
) -> None:
    config = _config(settings, _WORKER_APP)
    with tempfile.TemporaryDirectory(prefix="dropserve-") as folder:
        metrics, releases = Path(folder) / "metrics", Path(folder) / "releases"
        metrics.mkdir()
        os.environ[MULTIPROCESS_VARIABLE] = str(metrics)
        shared = settings.control_folder or releases  # by which one worker's change reaches all
        settings.model_copy(update={"control_folder": shared}).to_environment()
        workers = _Workers(config, list(sockets))
        if not ending.asked:
            workers.run()


class Server(uvicorn.Server):
    """uvicorn's server, with an end that loses no request and does not hang."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then take connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        self.servers = []
        for index, listener in enumerate(sockets or ()):
            make = partial(self._make_protocol, is_control=index > 0)  # as `serve` lists them
            if listener.family == socket.AF_UNIX:
                listener.setblocking(False)
                server = await loop.create_unix_server(
                    make, sock=listener, backlog=listeners.BACKLOG
                )
                self.servers.append(server)
                continue
            # The event loop accepts one connection of each descriptor in a turn, and every
            # connection wakes all descriptors of all workers.
            count = max(1, _ACCEPTED_IN_A_TURN // self.config.workers)
            for duplicate in listeners.duplicates(listener, count):
                server = await loop.create_server(make, sock=duplicate, backlog=listeners.BACKLOG)
                self.servers.append(server)
        self.started = True

    def _make_protocol(self, *, is_control: bool) -> asyncio.Protocol:
        protocol = FastPathProtocol(self.config, self.server_state, self.lifespan.state)
        protocol.is_control = is_control
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what waits to be accepted, then nothing more; answer, then end the application."""
        self.server_state.is_draining = True  # type: ignore[attr-defined]
        if parent_process() is None:  # a worker's listener is the others' too
            for listener in sockets or ():
                listeners.refuse_new_connections(listener)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._empty_backlog(sockets or ())
        await super().shutdown(sockets)

    async def _empty_backlog(self, sockets: Sequence[socket.socket]) -> None:
        await asyncio.sleep(_TICK_SECONDS)  # a handshake may be half done
        with suppress(TimeoutError):
            async with asyncio.timeout(_BACKLOG_SECONDS):
                while any(map(listeners.backlog, sockets)):
                    await asyncio.sleep(_TICK_SECONDS)
        await asyncio.sleep(0)  # the last are accepted, and say so to their protocols

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end, and make sure of it."""
        if not self.should_exit:
            end_process_in(self.config.timeout_graceful_shutdown or 0)
        super().handle_exit(sig, frame)


class _Worker(supervisor.Process):
    """One of several processes; it ends with the one that supervises it."""

    _pinged: float | None = None
    """When it was sent a ping that it has not answered yet, seconds of `time.monotonic`."""

    @property
    def server(self) -> Server:
        """The server, made in the worker's own process."""
        if self._server is None:
            self._server = Server(self.config)
        return self._server  # type: ignore[return-value]

    def is_alive(self, timeout: float = _HEALTHCHECK_SECONDS) -> bool:
        """Tell whether it runs, and was not silent for `timeout` seconds.

        Nothing is waited for, as uvicorn does: beside a worker that hangs, another that has died is
        replaced at once, and a signal is heard.
        """
        if not self.process.is_alive():
            return False
        try:
            while self.parent_conn.poll():
                self.parent_conn.recv()
                self._pinged = None
            if self._pinged is None:
                self._pinged = time.monotonic()
                self.parent_conn.send(b"ping")
        except (OSError, EOFError):  # it is ending
            return False
        return time.monotonic() - self._pinged <= timeout

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop, or until nobody is left to tell."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().target(sockets)


class _Workers(supervisor.Multiprocess):
    """uvicorn's supervisor, with what it leaves open."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        supervisor.Process = _Worker  # type: ignore[misc]
        super().__init__(config, sockets)

    def keep_subprocess_alive(self) -> None:
        """Say which workers have died and been replaced, and take their gauges out of the sums."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logger.error("worker died", pid=pid)
            forget_worker(pid)
            forget_processes(Path(os.environ[CONTROL_FOLDER_VARIABLE]), pid)

    def terminate_all(self) -> None:
        """Let no new connection begin; the workers take those that have, and end."""
        end_process_in(self.config.timeout_graceful_shutdown or 0, self._kill_all)
        for listener in self.sockets:
            listeners.refuse_new_connections(listener)
        super().terminate_all()
        for listener in self.sockets:
            listener.close()

    def _kill_all(self) -> None:
        for process in self.processes:
            process.process.kill()


def end_process_in(grace_seconds: float, before: Callable[[], None] | None = None) -> None:
    """End this process soon after the grace, whatever hangs: a lock, a disk, a pipe, a graph."""

    def end() -> None:
        time.sleep(grace_seconds + _OVERTIME_SECONDS)
        if before is not None:
            time.sleep(_OVERTIME_SECONDS / 2)  # the workers do the same, a moment earlier
            before()
        logger.error("end forced", reason="something still hung after the grace")
        logging.shutdown()  # which writes for a second at most
        os._exit(_HUNG_STATUS)

    threading.Thread(target=end, name="watchdog", daemon=True).start()


def _open_standard_streams() -> None:
    """Open what is closed of standard input, output and error, lest a socket takes its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _config(settings: ServiceSettings, app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=settings.workers,
        loop="uvloop",
        http=FastPathProtocol,
        ws="none",
        lifespan="on",
        log_config=logs.configuration(settings.log_level, settings.log_format),
        log_level="warning",  # of uvicorn's own lines; the service writes one a request
        access_log=False,
        server_header=False,
        headers=_HEADERS,
        proxy_headers=False,  # who a client is said to be decides nothing here
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
        timeout_worker_healthcheck=_HEALTHCHECK_SECONDS,
    )


def _within_descriptors(settings: ServiceSettings) -> ServiceSettings:
    """Allow as many connections as there are file descriptors for."""
    descriptors = listeners.allow_descriptors(settings.max_connections + _OWN_DESCRIPTORS)
    most = max(1, descriptors - _OWN_DESCRIPTORS)
    if most >= settings.max_connections:
        return settings
    logger.warning("connections limited", most=most, by="the limit on open files (ulimit -n)")
    return settings.model_copy(update={"max_connections": most})


def _listen_for_control(
    settings: ServiceSettings, port: int, stack: ExitStack
) -> list[socket.socket]:
    """Listen where models may be changed. Raises OSError about a place that was asked for."""
    if settings.control == "nobody":
        return []
    found = []
    if settings.control_port is not None:
        found.append(stack.enter_context(listeners.listen("127.0.0.1", settings.control_port)))
    if settings.control_socket is not None:
        found.append(_listen_on_socket(settings.control_socket, stack))
    return found or _listen_by_default(port, stack)


def _listen_by_default(port: int, stack: ExitStack) -> list[socket.socket]:
    path = listeners.default_control_socket(port)
    try:
        listeners.make_private_folder(path.parent)
        return [_listen_on_socket(path, stack)]
    except OSError as error:
        logger.warning(
            "no control listener",
            socket=str(path),
            reason=error.strerror or str(error),
            hint="name another place with --control-socket or --control-port",
        )
        return []


def _listen_on_socket(path: Path, stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(listeners.listen_for_control(path))
    stack.callback(path.unlink, missing_ok=True)
    return listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"


class ShutdownSignal:
    """Ends with status 0 before uvicorn's own handlers stand, and after they have done their work.

    uvicorn ends by raising the signal that stopped it once more, for the handler before its own.
    An exception from a signal is lost where one interrupts a destructor or a callback, as imports
    have them, so `asked` says what happened to whoever goes on.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Take the signal."""
        self.asked = True
        raise SystemExit(0)
