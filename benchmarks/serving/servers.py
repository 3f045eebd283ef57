"""A server as processes: started on its core, held still, let go on, weighed, ended.

Every server is up for the whole run, and all but the one that is measured are held still with
SIGSTOP. Starting each anew in every round would be no more honest: all would be measured cold, and
the slow starters would be measured seldom. A server that is held still takes no processor time; the
memory that it goes on holding takes none from the others while the machine has enough.
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
_IDLE_SHARE = 0.4  # of a core; Ray is never wholly idle
_IDLE_DEADLINE_SECONDS = 60.0


class ServerFailedError(Exception):
    """A server cannot be started, or has ended; the message says why in a line."""


@dataclass(frozen=True)
class Command:
    """What starts a server, and what its environment holds besides ours."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Server:
    """A running server and all processes that it has started."""

    def __init__(self, command: Command, cores: str, folder: Path) -> None:
        """Start it.

        cores: those it may run on, as `taskset -c` takes them; empty for all.
        folder: for its log; also where it runs.
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
        self._never_rests = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._process.poll()

    def require_running(self) -> None:
        """Raise ServerFailedError if it has ended by itself."""
        if self._process.poll() is not None:
            raise ServerFailedError(f"it ended by itself: {self.last_words()}")

    def wait(self) -> int:
        """Wait until it ends by itself; return its status."""
        return self._process.wait(_END_SECONDS)

    def last_words(self) -> str:
        """Return the last lines of its log, as one."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-_LOG_LINES:])[-600:]

    def hold(self) -> None:
        """Hold every process of it still."""
        self._signal(signal.SIGSTOP)

    def let_go(self) -> None:
        """Let them all go on."""
        self._signal(signal.SIGCONT)

    def wait_until_idle(self) -> None:
        """Wait until it works little: some go on for clients that have left.

        A minute at most, and no second time for one that never rests: LitServe polls.
        """
        if self._never_rests:
            return
        deadline = time.monotonic() + _IDLE_DEADLINE_SECONDS
        before = self._processor_seconds()
        while time.monotonic() < deadline:
            time.sleep(_IDLE_SECONDS)
            now = self._processor_seconds()
            if now - before < _IDLE_SHARE * _IDLE_SECONDS:
                return
            before = now
        self._never_rests = True

    def _processor_seconds(self) -> float:
        ticks = 0
        for process in self.processes():
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # in user mode, and in the kernel
        return ticks / os.sysconf("SC_CLK_TCK")

    def proportional_memory(self) -> float:
        """Return the memory of all its processes, MB; pages that several share count once (PSS)."""
        kilobytes = 0
        for process in self.processes():
            with suppress(OSError):
                text = Path(f"/proc/{process}/smaps_rollup").read_text()
                kilobytes += int(text.partition("\nPss:")[2].split()[0])
        return kilobytes / 1000

    def processes(self) -> dict[int, str]:
        """Return its processes, each id with when it started.

        They are descendants, and orphans by the mark they have inherited.
        """
        alive = _alive()
        found = {self._process.pid} & set(alive)
        while more := {each for each, (parent, _) in alive.items() if parent in found} - found:
            found |= more
        found |= {each for each in set(alive) - found if self._is_marked(each)}
        return {each: alive[each][1] for each in found}

    def end(self) -> None:
        """Ask it to end, then end whatever is left of it."""
        known = self.processes()
        self.let_go()
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
        """Those that live on: an id of `known` that started at another time is a stranger's."""
        alive = _alive()
        stayed = {each for each, start in known.items() if alive.get(each, ("", ""))[1] == start}
        return stayed | set(self.processes())

    def _is_marked(self, process: int) -> bool:
        try:
            return f"{_MARK}={self.mark}".encode() in Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)


def _alive() -> dict[int, tuple[int, str]]:
    """Return the parent of every living process, and when it started."""
    alive = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # pid (name) state parent … start …, and the name may hold anything
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                alive[int(folder.name)] = (int(fields[1]), fields[19])
    return alive
