"""Runs several worker processes and replaces those that die. Knows no setting and no route."""

import os
import signal
import socket
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

import structlog
import uvicorn
from uvicorn.supervisors import multiprocess

from service.http import listeners
from service.http.graceful_shutdown import GracefulServer, start_exit_watchdog
from service.observability.metrics_recorder import remove_worker_gauges
from service.registry.rollout_store import remove_process_files

logger = structlog.stdlib.get_logger("service")

HEALTHCHECK_SECONDS = 30
"""How long a worker may leave a ping unanswered before the supervisor replaces it."""


class WorkerProcess(multiprocess.Process):
    """One of several worker processes; it ends when its supervisor does."""

    _pinged: float | None = None
    """When a ping was sent that is not answered yet, seconds of `time.monotonic`."""

    @property
    def server(self) -> GracefulServer:
        """The server, created in the worker's own process."""
        if self._server is None:
            self._server = GracefulServer(self.config)
        return self._server  # type: ignore[return-value]

    def is_alive(self, timeout: float = HEALTHCHECK_SECONDS) -> bool:
        """Return whether the process runs and has answered within `timeout` seconds.

        Unlike uvicorn's, this does not wait for the answer, so that a worker that hangs delays
        neither the replacement of another that has died nor the reaction to a signal.
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
        except (OSError, EOFError):  # the worker is ending
            return False
        return time.monotonic() - self._pinged <= timeout

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes or the supervisor has died."""
        threading.Thread(target=_terminate_with_parent, daemon=True).start()
        super().target(sockets)


class WorkerSupervisor(multiprocess.Multiprocess):
    """uvicorn's supervisor, which also cleans up after dead workers and shuts down gracefully."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], control_folder: Path
    ) -> None:
        """Prepare the workers.

        sockets: the public listener, then the control listeners.
        control_folder: the folder in which the workers record the rollouts that they have applied.
        """
        multiprocess.Process = WorkerProcess  # type: ignore[misc]
        super().__init__(config, sockets)
        self._control_folder = control_folder

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers, log them, and remove their gauges and records."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logger.error("worker died", pid=pid)
            remove_worker_gauges(pid)
            remove_process_files(self._control_folder, pid)

    def terminate_all(self) -> None:
        """Refuse new connections; the workers answer those that have begun, and end."""
        start_exit_watchdog(self.config.timeout_graceful_shutdown or 0, self._kill_all)
        for listener in self.sockets:
            listeners.refuse_new_connections(listener)
        super().terminate_all()
        for listener in self.sockets:
            listener.close()

    def _kill_all(self) -> None:
        for process in self.processes:
            process.process.kill()


def _terminate_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
