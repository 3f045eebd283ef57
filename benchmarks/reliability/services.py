"""Starts `python -m service`, measures its memory and reads its log."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson

from benchmarks.reliability.wire import Address, exchange, request
from benchmarks.serving.environments import ROOT
from benchmarks.serving.servers import Command, Server, ServerFailedError
from service.settings import ServiceSettings

MEMORY_LIMIT = 2 * 2**30
"""Memory limit of a service under attack, like that of its container, bytes."""

_READY_IN_A_ROW = 8
"""Successive probes, each on a new connection: one worker may be ready and the next not."""
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05


class Service:
    """A running service; as a context manager it waits until the service is ready."""

    def __init__(
        self,
        folder: Path,
        models_folder: Path,
        port: int,
        *flags: str,
        cores: str = "",
        environment: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """Start the service.

        folder: gets its log.
        port: 0 for any free one, which the service names in its log: that has to be of level info.
        flags: as `python -m service` takes them.
        cores: as `taskset -c` takes them; empty for all.
        cgroup: a folder of cgroups; the service gets a child of MEMORY_LIMIT bytes there.
        wrapper: a command that runs the service's command, which is appended.
        """
        self.address: Address = ("127.0.0.1", port)
        self.control_address: Address | None = None
        """Of the control listener of a service at a free port; None where it has no port."""
        self._log = folder / "log.txt"
        self._cgroup = None if cgroup is None else _make_cgroup(cgroup)
        program = [sys.executable, "-m", "service", "--port", str(port), "--log-format", "json"]
        program += ["--models-folder", str(models_folder), *flags]
        program = [*wrapper, *program]
        if self._cgroup is not None:
            enter = f'echo $$ > {self._cgroup / "cgroup.procs"} && exec "$@"'
            program = ["sh", "-c", enter, "sh", *program]
        variables = {"PYTHONPATH": str(ROOT), **(environment or {})}
        # This process may be pinned to one core, which a child would inherit.
        self.server = Server(Command(program, variables), cores or _all_cores(), folder)

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.server.end()
        if self._cgroup is not None:
            with suppress(OSError):
                self._cgroup.rmdir()

    @property
    def pid(self) -> int:
        """The id of the process that was started."""
        return self.server.pid

    @property
    def url(self) -> str:
        """The URL of the public listener of a service without TLS."""
        return f"http://{self.address[0]}:{self.address[1]}"

    def workers(self) -> list[int]:
        """Return the ids of the worker processes; none where the service has a single process."""
        found = []
        for process in self.server.processes():
            with suppress(OSError):
                line = Path(f"/proc/{process}/cmdline").read_bytes()
                status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                if b"spawn_main" in line and int(status[1]) == self.pid:
                    found.append(process)
        return sorted(found)

    def wait_until_ready(self, seconds: float = _START_SECONDS) -> None:
        """Wait until the service is ready.

        Raises:
            ServerFailedError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not (self._is_listening() and all(self.is_ready() for _ in range(_READY_IN_A_ROW))):
            self.server.require_running()
            if time.monotonic() > deadline:
                raise ServerFailedError(f"it is not ready: {self.server.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def is_ready(self) -> bool:
        """Send a request to /health/ready."""
        address = self.control_address or self.address  # the public listener may take TLS alone
        message = request("GET", "/health/ready", host=address[0])  # one of any --allowed-hosts
        response = exchange(address, message, timeout=2)
        return response is not None and response.status == 200

    def _is_listening(self) -> bool:
        """Whether the port is known; a free one is read from the log."""
        if not self.address[1]:
            for entry in self.logged("listening"):
                self.address = _address(entry["url"]) or self.address
                self.control_address = next(filter(None, map(_address, entry["control"])), None)
        return self.address[1] > 0

    def log(self) -> str:
        """Return the whole output of the service."""
        return self._log.read_text(errors="replace")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log entries of one event."""
        found = []
        for line in self.log().splitlines():
            with suppress(orjson.JSONDecodeError):
                entry = orjson.loads(line)
                if isinstance(entry, dict) and entry.get("event") == event:
                    found.append(entry)
        return found


def _address(url: str) -> Address | None:
    """Return the address of a URL; None of a Unix socket."""
    number = url.rpartition(":")[2]
    return ("127.0.0.1", int(number)) if number.isdecimal() else None


def _all_cores() -> str:
    return f"0-{(os.cpu_count() or 1) - 1}"


def control_listener(port: int) -> tuple[tuple[str, ...], Address]:
    """Return the flags that make the service open a control listener, and its address.

    port: the public port; a service without a control listener takes control requests there.
    """
    if "control_port" not in ServiceSettings.model_fields:
        return (), ("127.0.0.1", port)
    return ("--control-port", str(port + 1)), ("127.0.0.1", port + 1)


class MemoryWatch(threading.Thread):
    """Measures the memory of a service five times a second; kills it above the limit."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._stopped = threading.Event()
        self.peak = 0.0
        """MB, pages that several processes share counted once (PSS)."""
        self.was_killed = False

    def run(self) -> None:
        """Measure until `end` is called."""
        while not self._stopped.wait(0.2):
            now = self._service.server.proportional_memory()
            self.peak = max(self.peak, now)
            if now * 1000 > MEMORY_LIMIT / 1024 and not self.was_killed:
                self.was_killed = True
                with suppress(ProcessLookupError):
                    os.kill(_heaviest(self._service), signal.SIGKILL)

    def end(self) -> float:
        """Stop measuring; return the peak."""
        self._stopped.set()
        self.join()
        return self.peak


def _heaviest(service: Service) -> int:
    return max(service.server.processes(), key=_resident, default=service.pid)


def _resident(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return 0


def _make_cgroup(parent: Path) -> Path:
    """Make a cgroup (version 1 or 2) with one processor and MEMORY_LIMIT bytes."""
    folder = parent / f"dropserve-{os.getpid()}"
    folder.mkdir()
    limits = {
        "memory.max": str(MEMORY_LIMIT),
        "memory.limit_in_bytes": str(MEMORY_LIMIT),
        "cpu.max": "100000 100000",
    }
    for name, value in limits.items():
        if (folder / name).exists():
            (folder / name).write_text(value)
    return folder
