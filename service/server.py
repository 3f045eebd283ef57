"""Settings -> a listening server, one process or several. Knows no route.

SIGTERM and SIGINT: stop accepting, finish what is in hand within the grace, exit 0.
"""

import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from uvicorn.supervisors import Multiprocess

from service import logs
from service.metrics import MULTIPROCESS_VARIABLE, forget_worker
from service.protocol import ExpressProtocol
from service.releases import forget_processes
from service.settings import CONTROL_FOLDER_VARIABLE, ServiceSettings

logger = structlog.stdlib.get_logger("service")

_WORKER_APP = "service.app:create_worker_app"


def serve(settings: ServiceSettings) -> int:
    """Serve until told to stop; return the exit status."""
    logs.configure(settings.log_level, settings.log_format)
    ending = Ending()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ending)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python adds the address
        sys.stderr.write(
            f"Cannot listen on {settings.host} port {settings.port} ({reason}); "
            "choose another with --host and --port.\n"
        )
        return 1
    if settings.control_folder is not None:
        forget_processes(settings.control_folder)
    with listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host  # as RFC 3986 has IPv6 addresses
        logger.info("listening", url=f"http://{shown}:{port}", workers=settings.workers)
        if settings.workers == 1:
            serve_here(settings, listener, ending)
        else:
            _serve_in_workers(settings, listener, ending)
    return 0


def serve_here(settings: ServiceSettings, listener: socket.socket, ending: "Ending") -> None:
    """Serve in this process, unless it was asked to end meanwhile."""
    from service.app import (  # the parent of several workers does without it
        create_app,
        spare_the_collector,
    )

    server = uvicorn.Server(_config(settings, create_app(settings)))
    spare_the_collector()
    if not ending.asked:
        server.run(sockets=[listener])


def _serve_in_workers(settings: ServiceSettings, listener: socket.socket, ending: "Ending") -> None:
    config = _config(settings, _WORKER_APP)
    with tempfile.TemporaryDirectory(prefix="dropserve-") as folder:
        metrics, releases = Path(folder) / "metrics", Path(folder) / "releases"
        metrics.mkdir()
        os.environ[MULTIPROCESS_VARIABLE] = str(metrics)
        shared = settings.control_folder or releases  # by which one worker's change reaches all
        settings.model_copy(update={"control_folder": shared}).to_environment()
        workers = _Workers(config, sockets=[listener])
        if not ending.asked:
            workers.run()


class _Workers(Multiprocess):
    """uvicorn's supervisor, with what it leaves open."""

    def keep_subprocess_alive(self) -> None:
        """Say which workers have died and been replaced, and take their gauges out of the sums."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logger.error("worker died", pid=pid)
            forget_worker(pid)
            forget_processes(Path(os.environ[CONTROL_FOLDER_VARIABLE]), pid)

    def terminate_all(self) -> None:
        """Stop accepting first: the kernel goes on while any process listens."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _config(settings: ServiceSettings, app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=settings.workers,
        loop="uvloop",
        http=ExpressProtocol,
        ws="none",
        lifespan="on",
        log_config=logs.configuration(settings.log_level, settings.log_format),
        log_level="warning",  # of uvicorn's own lines; the service writes one a request
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who a client is said to be decides nothing here
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


class Ending:
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
