"""Compares services by the processor time that a request costs them, in turns.

Other programs on the machine disturb processor time less than they disturb durations.
"""

import http.client
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from benchmarks.reliability.services import Service

_SCHEDULER_CLOCK = 2  # CPUCLOCK_SCHED of the kernel


@contextmanager
def running_service(
    models_folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Run a service of the digits, wait until it is ready, and end it afterwards.

    variables: of its environment, besides those of this process.
    """
    flags = ("--models", "digits", *options)
    with (
        tempfile.TemporaryDirectory() as folder,
        Service(Path(folder), models_folder.resolve(), 0, *flags, environment=variables) as service,
    ):
        yield service


class KeptConnection:
    """A connection to a running service, over which its cost is measured."""

    def __init__(self, service: Service, headers: Mapping[str, str] | None = None) -> None:
        """Prepare the connection; headers: of every request."""
        self._pid, self._headers = service.pid, headers or {}
        self._connection = http.client.HTTPConnection(*service.address)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def processor_seconds(self) -> float:
        """Return the time that the service's process has run."""
        return processor_seconds(self._pid)

    def post(self, route: str, kind: str, body: bytes, count: int) -> None:
        """Send a request `count` times, each after the last response."""
        headers = {"Content-Type": kind, **self._headers}
        for _ in range(count):
            self._connection.request("POST", route, body, headers)
            response = self._connection.getresponse()
            response.read()
            assert response.status == 200, response.status


@contextmanager
def connected(
    models_folder: Path,
    *options: str,
    headers: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[KeptConnection]:
    """Run a service of the digits as `running_service` does, and connect to it."""
    with (
        running_service(models_folder, *options, variables=variables) as service,
        closing(KeptConnection(service, headers)) as connection,
    ):
        yield connection


def picture() -> bytes:
    """Return a small PNG."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).save(file, "PNG")
    return file.getvalue()


def processor_seconds(pid: int) -> float:
    """Return the time that all threads of a process have run (Linux, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


def seconds_from_turn_to_turn(
    clocks: Mapping[str, Callable[[], float]], take_turn: Callable[[str], None], turns: int
) -> list[dict[str, float]]:
    """Return the processor seconds of each service, by its name, for each turn of all.

    What a service does between its turns counts, too: some write or send only after a response.
    One turn before the others warms all and does not count; each begins with another service.

    clocks: return the processor time of a service so far.
    take_turn: sends one service its requests.
    """
    names = list(clocks)
    before: dict[str, float] = {}
    found = []
    for turn in range(turns + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            take_turn(name)
        now = {name: clock() for name, clock in clocks.items()}
        if before:
            found.append({name: now[name] - before[name] for name in names})
        before = now
    return found


class Comparison(NamedTuple):
    """What requests cost in two ways: medians over the turns."""

    first: float
    """Processor seconds of a request."""
    second: float
    ratio: float
    """Of the second to the first, within a turn."""


def compare_in_turns(
    first: Callable[[], float], second: Callable[[], float], turns: int
) -> Comparison:
    """Measure two costs by turns, the second first in every other turn.

    One turn before the others warms both and does not count.
    """
    pairs = []
    for turn in range(turns + 1):
        if turn % 2:
            before, after = first(), second()
        else:
            after, before = second(), first()
        pairs.append((before, after))
    del pairs[0]
    return Comparison(
        statistics.median(before for before, _ in pairs),
        statistics.median(after for _, after in pairs),
        statistics.median(after / before for before, after in pairs),
    )
