"""Runs several worker processes and replaces those that die. Knows no setting and no route."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

import structlog
from uvicorn.supervisors import multiprocess

from service.http import listeners
from service.http.graceful_shutdown import (
    GracefulServer,
    ServerConfig,
    start_exit_watchdog,
)
from service.observability.metrics_recorder import remove_worker_gauges
from service.registry.peer_process_records import remove_ended
from service.registry.process_identity import this_process

logger = structlog.stdlib.get_logger("service")

HEALTHCHECK_SECONDS = 30
"""How long a worker may leave a ping unanswered before the supervisor replaces it."""
_END_WORKER = signal.SIGUSR1
"""Tells a worker to end. SIGTERM has it drain, and SIGINT may come from a terminal as well."""
_POLL_SECONDS = 0.5


class WorkerProcess(multiprocess.Process):
    """One of several worker processes; it ends when its supervisor does."""

    _pinged: float | None = None
    """When a ping was sent that is not answered yet, seconds of `time.monotonic`."""

    @property
    def server(self) -> GracefulServer:
        """The server, created in the worker's own process."""
        if self._server is None:
            self._server = GracefulServer(self.config)  # type: ignore[arg-type]
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

    def drain(self) -> None:
        """Have the worker drain until it is told to end."""
        if self.process.is_alive():
            os.kill(self.process.pid or 0, signal.SIGTERM)

    def terminate(self) -> None:
        """Tell the worker to end."""
        if self.process.is_alive():
            os.kill(self.process.pid or 0, _END_WORKER)
        self.parent_conn.close()
        self.child_conn.close()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes or the supervisor has died."""
        signal.signal(_END_WORKER, lambda _signal, _frame: self.server.end())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal sends it to all processes
        threading.Thread(target=_terminate_with_parent, daemon=True).start()
        super().target(sockets)


class WorkerSupervisor(multiprocess.Multiprocess):
    """uvicorn's supervisor, which also cleans up after dead workers and shuts down gracefully."""

    config: ServerConfig
    processes: list[WorkerProcess]  # type: ignore[assignment]

    def __init__(
        self, config: ServerConfig, sockets: list[socket.socket], control_folder: Path
    ) -> None:
        """Prepare the workers.

        sockets: the public listener, then the control listeners.
        control_folder: the folder in which the workers record the rollouts that they have applied.
        """
        multiprocess.Process = WorkerProcess  # type: ignore[misc]
        before = signal.getsignal(signal.SIGHUP)
        super().__init__(config, sockets)
        if before is signal.SIG_IGN:  # by nohup
            signal.signal(signal.SIGHUP, before)
        self._control_folder = control_folder
        self._drain_until: float | None = None
        """When draining ends, seconds of `time.monotonic`; None before it begins."""

    def run(self) -> None:
        """Start the workers and replace those that die; after a signal drain and end them.

        Unlike uvicorn's, this reacts to a signal at once.
        """
        self.init_processes()
        with _signals_as_bytes() as signals:
            while not self.should_exit.is_set():
                wait([signals], self._seconds_to_wait())
                with suppress(BlockingIOError):
                    signals.recv(4096)
                self.handle_signals()
                self.keep_subprocess_alive()
        self.terminate_all()
        self.join_all()

    def _seconds_to_wait(self) -> float:
        if self._drain_until is None:
            return _POLL_SECONDS
        return min(_POLL_SECONDS, max(0.0, self._drain_until - time.monotonic()))

    def handle_term(self) -> None:
        """Drain at the first SIGTERM if there is a delay; end at the second."""
        if not self.config.drain_delay_seconds or self._drain_until is not None:
            self.should_exit.set()
            return
        self._drain_until = time.monotonic() + self.config.drain_delay_seconds
        logger.info("draining", seconds=self.config.drain_delay_seconds)
        for process in self.processes:
            process.drain()

    def handle_hup(self) -> None:
        """Restart the workers, unless they drain: a new one would not."""
        if self._drain_until is None:
            super().handle_hup()

    def handle_ttin(self) -> None:
        """Add a worker, unless they drain."""
        if self._drain_until is None:
            super().handle_ttin()

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers, log them, and remove their gauges and records.

        While the workers drain, none is replaced; with the last one, draining ends.
        """
        if self._drain_until is not None:
            is_alive = any(process.process.is_alive() for process in self.processes)
            if not is_alive or time.monotonic() >= self._drain_until:
                self.should_exit.set()
            return
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logger.error("worker died", pid=pid)
            remove_worker_gauges(pid)
            remove_ended(self._control_folder, this_process())

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
    os.kill(os.getpid(), _END_WORKER)


@contextmanager
def _signals_as_bytes() -> Iterator[socket.socket]:
    """Yield a socket that can be read when a signal has come, as `select` waits for it."""
    readable, writable = socket.socketpair()
    with readable, writable:
        readable.setblocking(False)
        writable.setblocking(False)
        previous = signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
        try:
            yield readable
        finally:
            signal.set_wakeup_fd(previous)
