"""Compares services by the processor time that a request costs them, in turns.

Other programs on the machine disturb processor time less than they disturb durations.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

_SCHEDULER_CLOCK = 2  # CPUCLOCK_SCHED of the kernel


class RunningService(NamedTuple):
    """A service that is ready."""

    pid: int
    port: int
    """The public port."""
    control_port: int | None
    """None: its control listener has none."""


@contextmanager
def running_service(
    models_folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[RunningService]:
    """Run a service of the digits, wait until it is ready, and end it afterwards.

    variables: of its environment, besides those of this process.
    """
    command = [sys.executable, "-m", "service", "--port", "0", "--log-format", "json"]
    models = ["--models-folder", str(models_folder), "--models", "digits"]
    environment = {**os.environ, **(variables or {})}
    with subprocess.Popen(  # noqa: S603
        [*command, *models, *options], stdout=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            port, control_port = 0, None
            for line in process.stdout:
                entry = json.loads(line)
                if entry["event"] == "listening":
                    port = _port(entry["url"]) or 0
                    control_port = next(filter(None, map(_port, entry["control"])), None)
                if entry["event"] == "ready":
                    break
            # Requests are logged, as usual; somebody has to read that, or the pipe is full.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield RunningService(process.pid, port, control_port)
        finally:
            process.terminate()


def _port(url: str) -> int | None:
    """Return the port of a URL; None of a Unix socket."""
    number = url.rpartition(":")[2]
    return int(number) if number.isdecimal() else None


def picture() -> bytes:
    """Return a small PNG."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).save(file, "PNG")
    return file.getvalue()


def processor_seconds(pid: int) -> float:
    """Return the time that all threads of a process have run (Linux, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


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
