"""Listens as the settings say and serves in one process or several. Knows no route.

SIGTERM and SIGINT end it: it refuses new connections, answers those that have begun within the
grace period, and exits.
"""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import structlog
import uvicorn

from service.http import listeners
from service.http.fast_path.fast_path_protocol import FastPathProtocol
from service.http.graceful_shutdown import GracefulServer, start_exit_watchdog
from service.http.http_protocol import HttpProtocol
from service.observability import log_format
from service.observability.metrics_recorder import MULTIPROCESS_VARIABLE
from service.registry.rollout_store import remove_process_files
from service.settings import ServiceSettings
from service.worker_supervisor import HEALTHCHECK_SECONDS, WorkerSupervisor

logger = structlog.stdlib.get_logger("service")

_WORKER_APP = "service.app:create_worker_app"
_OTHER_DESCRIPTORS = 128
"""Open files besides connections: models, logs, sandbox processes, pipes."""
_STANDARD_ERROR = 2
_HEADERS = [("X-Content-Type-Options", "nosniff")]


def serve(settings: ServiceSettings) -> int:
    """Serve until a signal ends the process; return the exit status."""
    _open_standard_streams()
    log_format.configure(settings.log_level, settings.log_format)
    shutdown_signal = ShutdownSignal(settings.grace_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, shutdown_signal)
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
        remove_process_files(settings.control_folder)
    settings = _limit_connections(settings)
    with ExitStack() as stack:
        stack.enter_context(listener)
        try:
            control_listeners = _listen_for_control(settings, listener.getsockname()[1], stack)
        except OSError as error:
            sys.stderr.write(
                f"Cannot listen for control ({error.strerror or error}); choose another place with "
                "--control-socket or --control-port.\n"
            )
            return 1
        logger.info(
            "listening",
            url=_public_url(listener),
            workers=settings.workers,
            control=[_control_address(each) for each in control_listeners],
        )
        sockets = [listener, *control_listeners]
        if settings.workers == 1:
            serve_in_process(settings, sockets, shutdown_signal)
        else:
            _serve_in_workers(settings, sockets, shutdown_signal)
    return 0


def serve_in_process(
    settings: ServiceSettings, sockets: Sequence[socket.socket], shutdown_signal: "ShutdownSignal"
) -> None:
    """Serve in this process, unless a signal came while it was starting."""
    from service.app import create_app, tune_gc

    config = _uvicorn_config(settings, create_app(settings))
    tune_gc()
    GracefulServer(config, lambda: shutdown_signal.is_received).run(sockets=list(sockets))


def _serve_in_workers(
    settings: ServiceSettings, sockets: Sequence[socket.socket], shutdown_signal: "ShutdownSignal"
) -> None:
    config = _uvicorn_config(settings, _WORKER_APP)
    with tempfile.TemporaryDirectory(prefix="dropserve-") as folder:
        metrics, releases = Path(folder) / "metrics", Path(folder) / "releases"
        metrics.mkdir()
        os.environ[MULTIPROCESS_VARIABLE] = str(metrics)
        # Through this folder a rollout that one worker receives reaches all workers.
        control_folder = settings.control_folder or releases
        settings.model_copy(update={"control_folder": control_folder}).to_environment()
        supervisor = WorkerSupervisor(config, list(sockets), control_folder)
        if not shutdown_signal.is_received:
            supervisor.run()


class ShutdownSignal:
    """The signal handler for the time before uvicorn sets its own and after uvicorn has shut down.

    It raises nothing: an exception that interrupts an import may be lost in a callback, or come out
    of an extension module as another error. uvicorn raises the signal that stopped it once more at
    its end, for the handler before its own.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self.is_received = False
        """Whether a signal came; the server checks it once uvicorn's handlers are set."""

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Note the signal, and end the process soon after the grace period whatever hangs."""
        if not self.is_received:
            self.is_received = True
            start_exit_watchdog(self._grace_seconds)


def _open_standard_streams() -> None:
    """Open standard streams that are closed, or else a socket would get their descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def _uvicorn_config(settings: ServiceSettings, app: object) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, or for the name of its factory."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=settings.workers,
        loop="uvloop",
        http=FastPathProtocol if settings.fast_path else HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=log_format.logging_config(settings.log_level, settings.log_format),
        log_level="warning",  # of uvicorn's own lines; the middleware logs one for each request
        access_log=False,
        server_header=False,
        headers=_HEADERS,
        proxy_headers=False,  # a header that names the client must not change its limits
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
        timeout_worker_healthcheck=HEALTHCHECK_SECONDS,
    )


def _limit_connections(settings: ServiceSettings) -> ServiceSettings:
    """Lower `max_connections` to what the limit on file descriptors allows."""
    descriptors = listeners.raise_descriptor_limit(settings.max_connections + _OTHER_DESCRIPTORS)
    allowed = max(1, descriptors - _OTHER_DESCRIPTORS)
    if allowed >= settings.max_connections:
        return settings
    logger.warning("connections limited", most=allowed, by="the limit on open files (ulimit -n)")
    return settings.model_copy(update={"max_connections": allowed})


def _listen_for_control(
    settings: ServiceSettings, port: int, stack: ExitStack
) -> list[socket.socket]:
    """Open the control listeners; raises OSError if a configured one cannot be opened.

    port: of the public listener, after which the default Unix socket is named.
    stack: closes the listeners and removes their sockets.
    """
    if settings.control == "nobody":
        return []
    found = []
    if settings.control_port is not None:
        found.append(stack.enter_context(listeners.listen("127.0.0.1", settings.control_port)))
    if settings.control_socket is not None:
        found.append(_listen_on_unix_socket(settings.control_socket, stack))
    return found or _listen_on_default_socket(port, stack)


def _listen_on_default_socket(port: int, stack: ExitStack) -> list[socket.socket]:
    path = listeners.default_control_socket(port)
    try:
        listeners.make_private_folder(path.parent)
        return [_listen_on_unix_socket(path, stack)]
    except OSError as error:
        logger.warning(
            "no control listener",
            socket=str(path),
            reason=error.strerror or str(error),
            hint="name another place with --control-socket or --control-port",
        )
        return []


def _listen_on_unix_socket(path: Path, stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(listeners.listen_for_control(path))
    stack.callback(path.unlink, missing_ok=True)
    return listener


def _public_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"  # RFC 3986, 3.2.2


def _control_address(listener: socket.socket) -> str:
    """Return the path of a Unix socket, or the URL of a TCP port."""
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
