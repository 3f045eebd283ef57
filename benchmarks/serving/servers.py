"""A server as a tree of processes: start on given cores, suspend, resume, measure memory, end.

Every server runs for the whole comparison, and all but the one that is measured are suspended with
SIGSTOP. Starting each anew in every round would be no fairer: all would be measured cold, and slow
starters would be measured seldom. A suspended server takes no processor time; the memory that it
keeps does not slow the others down while the machine has enough.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_MARK = "DROPSERVE_BENCHMARK"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_END_SECONDS = 15.0
_POLL_SECONDS = 0.05
_LOG_LINES = 5
_IDLE_SECONDS = 0.2
_IDLE_SHARE = 0.4  # of a core; Ray is never completely idle
_IDLE_DEADLINE_SECONDS = 60.0


class ServerFailedError(Exception):
    """A server cannot be started, or has ended; the message gives the reason in one line."""


@dataclass(frozen=True)
class Command:
    """The command that starts a server, and its environment variables beside our own."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Server:
    """A running server and all processes that it has started."""

    def __init__(self, command: Command, cores: str, folder: Path) -> None:
        """Start the server.

        cores: the cores that it may run on, as `taskset -c` takes them; empty for all.
        folder: its working directory, which also gets its log.
        """
        self.mark = f"dropserve_{uuid.uuid4().hex}"
        self._log = folder / "log.txt"
        pin = ["taskset", "-c", cores] if cores else []
        arguments = [part.replace("{mark}", self.mark) for part in command.arguments]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [*pin, *arguments],
                cwd=folder,
                env={**os.environ, **command.environment, _MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()
        self._never_idle = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The id of the process that was started."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status of that process; None while it runs."""
        return self._process.poll()

    def require_running(self) -> None:
        """Raise ServerFailedError if the server has ended by itself."""
        if self._process.poll() is not None:
            raise ServerFailedError(f"it ended by itself: {self.log_tail()}")

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit status."""
        return self._process.wait(_END_SECONDS)

    def log_tail(self) -> str:
        """Return the last lines of the log, joined into one."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-_LOG_LINES:])[-600:]

    def suspend(self) -> None:
        """Stop all processes of the server (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue all processes of the server (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def wait_until_idle(self) -> None:
        """Wait until the server uses little processor time: some still work for clients that left.

        Waits a minute at most, and only once for a server that never becomes idle: LitServe polls.
        """
        if self._never_idle:
            return
        deadline = time.monotonic() + _IDLE_DEADLINE_SECONDS
        before = self.processor_seconds()
        while time.monotonic() < deadline:
            time.sleep(_IDLE_SECONDS)
            now = self.processor_seconds()
            if now - before < _IDLE_SHARE * _IDLE_SECONDS:
                return
            before = now
        self._never_idle = True

    def processor_seconds(self) -> float:
        """Return the time that all processes have run, in user mode and in the kernel."""
        ticks = 0
        for process in self.processes():
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def proportional_memory(self) -> float:
        """Return the memory of all processes, MB; pages that several share count once (PSS)."""
        kilobytes = 0
        for process in self.processes():
            with suppress(OSError):
                text = Path(f"/proc/{process}/smaps_rollup").read_text()
                kilobytes += int(text.partition("\nPss:")[2].split()[0])
        return kilobytes / 1000

    def processes(self) -> dict[int, str]:
        """Return the process ids of the server, each with its start time in clock ticks.

        They are the descendants, and orphans, found by an environment variable they inherited.
        """
        running = _running_processes()
        found = {self._process.pid} & set(running)
        while more := {each for each, (parent, _) in running.items() if parent in found} - found:
            found |= more
        found |= {each for each in set(running) - found if self._is_marked(each)}
        return {each: running[each][1] for each in found}

    def end(self) -> None:
        """Send SIGTERM, wait, then kill all processes that are left."""
        known = self.processes()
        self.resume()
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        deadline = time.monotonic() + _END_SECONDS
        while (left := self._left(known)) and time.monotonic() < deadline:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
            self._process.poll()
        for region in _SHARED_MEMORY.glob(f"{self.mark}*"):
            region.unlink(missing_ok=True)

    def _left(self, known: dict[int, str]) -> set[int]:
        """Return the processes that still run; an id with another start time was reused."""
        running = _running_processes()
        survivors = {
            each for each, start in known.items() if running.get(each, ("", ""))[1] == start
        }
        return survivors | set(self.processes())

    def _is_marked(self, process: int) -> bool:
        try:
            return f"{_MARK}={self.mark}".encode() in Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)


def _running_processes() -> dict[int, tuple[int, str]]:
    """Return the parent of every running process, and its start time in clock ticks."""
    running = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # pid (name) state parent … start …, and the name may hold anything
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                running[int(folder.name)] = (int(fields[1]), fields[19])
    return running
