"""Listens as the settings say and serves in one process or several. Knows no route.

SIGTERM and SIGINT end it: it refuses new connections, answers those that have begun within the
grace period, and exits. With a drain delay SIGTERM makes it unready first, while it still accepts.
SIGHUP, as of a terminal that is closed, is SIGTERM to a single process, and has several restarted;
where it was ignored before, as under nohup, it stays so.
"""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import structlog

from model.cli_and_env_settings import USAGE_EXIT_STATUS
from model.errors import DropserveError
from model.graphs.execution_provider import why_provider_is_unusable
from model.private_folder import make_private_folder
from service.http import listeners
from service.http.fast_path.fast_path_protocol import FastPathProtocol
from service.http.graceful_shutdown import (
    GracefulServer,
    ServerConfig,
    start_exit_watchdog,
)
from service.http.http_protocol import HttpProtocol
from service.http.rate_table_of_all_workers import make_shared_table
from service.http.response_headers import SECURITY_HEADERS
from service.keys.key_file import KeyFile, KeyFileError, read_key_file
from service.label_studio.task_images import why_label_studio_is_unusable
from service.models_source.source_polling import (
    why_cache_is_unusable,
    why_source_is_unusable,
)
from service.observability import log_format
from service.observability.metrics_recorder import MULTIPROCESS_VARIABLE
from service.registry.peer_process_records import remove_ended
from service.registry.process_identity import this_process
from service.settings import ServiceSettings
from service.tls.certificate_files import Certificate, TlsFileError, load_certificate
from service.tracing import tracer
from service.worker_supervisor import HEALTHCHECK_SECONDS, WorkerSupervisor

logger = structlog.stdlib.get_logger("service")

_WORKER_APP = "service.app:create_worker_app"
_OTHER_DESCRIPTORS = 128
"""Open files besides connections: models, logs, sandbox processes, pipes."""
_STANDARD_ERROR = 2
NO_KEYS_HINT = (
    "whoever reaches this port may send requests; give --api-keys-file, or --no-auth if that is "
    "meant"
)


class StartError(DropserveError):
    """The service cannot start; `exit_status` is that of the process then."""

    def __init__(self, sentence: str, exit_status: int) -> None:
        super().__init__(sentence)
        self.exit_status = exit_status


def serve(settings: ServiceSettings) -> int:
    """Serve until a signal ends the process; return the exit status."""
    try:
        _serve(settings)
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


def _serve(settings: ServiceSettings) -> None:
    """Serve until a signal ends the process; raises StartError."""
    _open_standard_streams()
    log_format.configure(settings.log_level, settings.log_format)
    shutdown_signal = ShutdownSignal(settings.grace_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, shutdown_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)
    require_usable_keys(settings)
    require_usable_certificate(settings)
    require_usable_provider(settings)
    require_usable_source(settings)
    require_usable_label_studio(settings)
    listener = listen_publicly(settings)
    if settings.control_folder is not None:
        remove_ended(settings.control_folder, this_process())
    settings = _limit_connections(settings)
    with ExitStack() as stack:
        stack.enter_context(listener)
        control_listeners = listen_for_control(settings, listener.getsockname()[1], stack)
        logger.info(
            "listening",
            url=public_url(settings, listener),
            workers=settings.workers,
            control=[_control_address(each) for each in control_listeners],
        )
        _warn_if_open(settings, listener)
        tracer.log_settings()
        sockets = [listener, *control_listeners]
        if settings.workers == 1:
            serve_in_process(settings, sockets, shutdown_signal)
        else:
            _serve_in_workers(settings, sockets, shutdown_signal)


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
        if settings.limits_client_rates:
            _make_rate_table(metrics)
        # Through this folder a rollout that one worker receives reaches all workers.
        control_folder = settings.control_folder or releases
        settings.model_copy(update={"control_folder": control_folder}).to_environment()
        supervisor = WorkerSupervisor(config, list(sockets), control_folder)
        if not shutdown_signal.is_received:
            supervisor.run()


def _make_rate_table(folder: Path) -> None:
    """Make the table of the clients' rates that workers share; raises StartError."""
    try:
        make_shared_table(folder)
    except OSError as error:
        raise StartError(
            f"The rates of clients cannot be shared between workers ({_reason(error)}); free space "
            "in the temporary folder, name another with TMPDIR, or give one worker.",
            1,
        ) from None


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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def _reason(error: OSError) -> str:
    """Return what went wrong, without the address that Python adds to it."""
    return (error.strerror or str(error)).partition(" (")[0]


def _open_standard_streams() -> None:
    """Open standard streams that are closed, or else a socket would get their descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def _uvicorn_config(settings: ServiceSettings, app: object) -> ServerConfig:
    """Return uvicorn's configuration for an application, or for the name of its factory."""
    config = ServerConfig(
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
        headers=list(SECURITY_HEADERS),
        proxy_headers=False,  # a header that names the client must not change its limits
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
        timeout_worker_healthcheck=HEALTHCHECK_SECONDS,
    )
    config.drain_delay_seconds = settings.drain_delay
    return config


def allowed_connections(settings: ServiceSettings) -> int:
    """Raise the limit on file descriptors; return how many connections it allows a worker."""
    descriptors = listeners.raise_descriptor_limit(settings.max_connections + _OTHER_DESCRIPTORS)
    return min(settings.max_connections, max(1, descriptors - _OTHER_DESCRIPTORS))


def _limit_connections(settings: ServiceSettings) -> ServiceSettings:
    """Lower `max_connections` to what the limit on file descriptors allows."""
    allowed = allowed_connections(settings)
    if allowed >= settings.max_connections:
        return settings
    logger.warning("connections limited", most=allowed, by="the limit on open files (ulimit -n)")
    return settings.model_copy(update={"max_connections": allowed})


def require_usable_keys(settings: ServiceSettings) -> KeyFile | None:
    """Return the file of keys, if clients need keys; raises StartError if it cannot be used."""
    if settings.api_keys_file is None:
        return None
    if not settings.auth:
        raise StartError(
            "--api-keys-file: --no-auth is given too; give one of them.", USAGE_EXIT_STATUS
        )
    try:
        return read_key_file(settings.api_keys_file)
    except KeyFileError as error:
        raise StartError(f"--api-keys-file: {error}", USAGE_EXIT_STATUS) from None


def require_usable_certificate(settings: ServiceSettings) -> Certificate | None:
    """Return the certificate, if the port takes https; raises StartError if it cannot be used."""
    if settings.tls_files is None:
        return None
    try:
        return load_certificate(settings.tls_files)
    except TlsFileError as error:
        raise StartError(str(error), USAGE_EXIT_STATUS) from None


def require_usable_provider(settings: ServiceSettings) -> None:
    """Raise StartError if ONNX Runtime was built without the execution provider of the settings."""
    problem = why_provider_is_unusable(settings.provider)
    if problem is not None:
        raise StartError(problem, USAGE_EXIT_STATUS)


def require_usable_source(settings: ServiceSettings) -> None:
    """Raise StartError if a models source is named and cannot be followed at all.

    Nor may the cache be of another source, whose bundles would be served instead.
    """
    problem = why_source_is_unusable(settings) or why_cache_is_unusable(settings)
    if problem is not None:
        raise StartError(problem, USAGE_EXIT_STATUS)


def require_usable_label_studio(settings: ServiceSettings) -> None:
    """Raise StartError if a Label Studio is named and cannot be served at all."""
    problem = why_label_studio_is_unusable(settings)
    if problem is not None:
        raise StartError(problem, USAGE_EXIT_STATUS)


def listen_publicly(settings: ServiceSettings) -> socket.socket:
    """Open the public listener; raises StartError."""
    try:
        return listeners.listen(settings.host, settings.port)
    except OSError as error:
        raise StartError(
            f"Cannot listen on {settings.host} port {settings.port} ({_reason(error)}); "
            "choose another with --host and --port.",
            1,
        ) from None


def listen_for_control(
    settings: ServiceSettings, port: int, stack: ExitStack
) -> list[socket.socket]:
    """Open the control listeners; raises StartError if a configured one cannot be opened.

    port: of the public listener, after which the default Unix socket is named.
    stack: closes the listeners and removes their sockets.
    """
    if settings.control == "nobody":
        return []
    found = []
    try:
        if settings.control_port is not None:
            found.append(stack.enter_context(listeners.listen("127.0.0.1", settings.control_port)))
        if settings.control_socket is not None:
            found.append(_listen_on_unix_socket(settings.control_socket, stack))
    except OSError as error:
        raise StartError(
            f"Cannot listen for control ({_reason(error)}); choose another place with "
            "--control-socket or --control-port.",
            1,
        ) from None
    return found or _listen_on_default_socket(port, stack)


def _listen_on_default_socket(port: int, stack: ExitStack) -> list[socket.socket]:
    path = listeners.default_control_socket(port)
    try:
        make_private_folder(path.parent)
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


def _warn_if_open(settings: ServiceSettings, listener: socket.socket) -> None:
    """Warn where other machines reach the port and need neither key nor certificate."""
    if admits_everybody(settings) and is_reachable(listener):
        logger.warning("no keys", url=public_url(settings, listener), hint=NO_KEYS_HINT)


def admits_everybody(settings: ServiceSettings) -> bool:
    """Return whether whoever reaches the port may send requests, and nothing says it is meant."""
    has_proof = settings.api_keys_file is not None or settings.tls_client_ca is not None
    return settings.auth and not has_proof


def is_reachable(listener: socket.socket) -> bool:
    """Return whether other machines may reach a TCP listener."""
    return not ip_address(listener.getsockname()[0]).is_loopback


def public_url(settings: ServiceSettings, listener: socket.socket) -> str:
    """Return the URL of the public listener."""
    scheme = "http" if settings.tls_files is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"  # RFC 3986


def _control_address(listener: socket.socket) -> str:
    """Return the path of a Unix socket, or the URL of a TCP port."""
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
