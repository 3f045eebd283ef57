"""Kill a service that logs its traffic, again and again: is every rotated line whole?

    python -m benchmarks.reliability.traffic_log [--quick] [--record]

A service of two workers logs lines and images, in segments of .2 s, under the load of 8 clients.
All of its processes are killed (SIGKILL) at a random moment, 50 times (`--quick`: 3), and another
service goes on in the same folder. After each kill every finished segment is read: all lines are
whole JSON, their images are there, and no segment has changed that was finished before.
"""

import asyncio
import hashlib
import os
import random
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from benchmarks.reliability.clients import Client, ClientStats, load_while
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.requests import infer, predict
from benchmarks.reliability.services import Service
from service.traffic_log.image_files import StoredImageError, read_image
from service.traffic_log.log_segment import IMAGES, LINES, PART

_KILLS, _QUICK_KILLS = 50, 3
_CLIENTS = 8
_LOAD_SECONDS = 0.5, 2.5
_FLAGS = ("--workers", "2", "--log-level", "warning", "--traffic-log-images")
_ROTATION = ("--traffic-log-segment-seconds", "0.2", "--traffic-log-max-bytes", f"{2**28}")


@dataclass
class _Findings:
    """What all checks together have found."""

    segments: dict[str, str] = field(default_factory=dict)
    """Finished segments and their digests."""
    lines: int = 0
    cut: int = 0
    without_image: int = 0
    changed: int = 0
    recovered: int = 0
    """Segments that a killed process had not finished."""

    def check(self, folder: Path) -> None:
        """Read the finished segments that no earlier check has read."""
        for path in folder.glob(f"*{LINES}"):
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            known = self.segments.setdefault(path.name, "")
            if known:
                self.changed += known != digest
                continue
            self.segments[path.name] = digest
            images = folder / path.name.replace(LINES, IMAGES)
            self.cut += not content.endswith(b"\n")
            for line in content.splitlines():
                self._check_line(line, images)
        self.recovered += len(list(folder.glob(f"*{PART}")))

    def _check_line(self, line: bytes, images: Path) -> None:
        self.lines += 1
        try:
            digest = orjson.loads(line)["digest"]
        except (ValueError, LookupError):
            self.cut += 1
            return
        try:
            self.without_image += read_image(images, digest) is None
        except StoredImageError:
            self.without_image += 1


def measure(options: Options) -> Report:
    """Kill the service under load, and check the folder after each time."""
    kills = _QUICK_KILLS if options.quick else _KILLS
    folder, findings, stats = options.folder("log"), _Findings(), ClientStats()
    for number in range(kills):
        options.log(f"kill {number + 1} of {kills}")
        asyncio.run(_log_until_killed(options, folder, number, stats))
        findings.check(folder)
    with Service(options.folder("last"), options.models_folder, options.port, *_flags(folder)):
        left = len(list(folder.glob(f"*{PART}")))
    findings.check(folder)
    counts = (findings.lines, findings.recovered, stats.good)
    return Report(
        title="A service that logs its traffic is killed",
        setting=f"{kills} kills, {_CLIENTS} clients, two workers; {options}.",
        columns=("kills", "segments", "lines", "segments finished later", "answers"),
        rows=[(f"{kills}", f"{len(findings.segments)}", *(f"{each:,}" for each in counts))],
        criteria=[
            _none("lines of finished segments that are cut", findings.cut),
            _none("lines whose image is missing or damaged", findings.without_image),
            _none("finished segments that changed", findings.changed),
            _none("segments that the next service left unfinished", left),
        ],
    )


async def _log_until_killed(
    options: Options, folder: Path, number: int, stats: ClientStats
) -> None:
    pause = random.Random(number).uniform(*_LOAD_SECONDS)  # noqa: S311

    def start() -> Service:
        place = options.folder(f"kill-{number}")
        return Service(place, options.models_folder, options.port, *_flags(folder)).__enter__()

    service = await asyncio.to_thread(start)

    async def kill() -> None:
        await asyncio.sleep(pause)
        for process in [service.pid, *service.workers()]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    try:
        clients = [
            Client(service.address, [predict(), infer(samples=16)], stats) for _ in range(_CLIENTS)
        ]
        await load_while(clients, kill)
    finally:
        await asyncio.to_thread(service.__exit__)


def _flags(folder: Path) -> tuple[str, ...]:
    return (*_FLAGS, *_ROTATION, "--traffic-log", str(folder))


def _none(name: str, count: int) -> Criterion:
    return Criterion(name, f"{count}", "0", count == 0)


if __name__ == "__main__":
    sys.exit(run("traffic_log", __doc__, measure, sys.argv[1:], first_port=8790))
