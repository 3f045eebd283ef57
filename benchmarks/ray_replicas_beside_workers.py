"""Replicas of Ray Serve beside `--workers` of the service, in requests a second and percentiles.

    python -m benchmarks.ray_replicas_beside_workers [--quick]

The service with one and two workers, and a Ray cluster with one and two replicas, each started,
measured and ended in turn, three times (`--quick`: once). wrk sends POST /predict with a PNG on one
connection and on 32, and POST /uncertainty with 64 images and 1,024 samples on 8. Everything shares
this machine's processors, the load generator too. Needs wrk, h2load, an environment with Ray
(`make .venv-ray`) and models/digits. A round takes about four minutes.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.reliability.ray_cluster import RayCluster
from benchmarks.reliability.ray_replicas import PYTHON
from benchmarks.reliability.report import markdown_table
from benchmarks.reliability.services import Service
from benchmarks.serving.environments import ROOT
from benchmarks.serving.load import ClosedLoopResult, LoadGenerator, Target
from benchmarks.serving.payloads import JSON, Content, png
from benchmarks.serving.servers import Server

_ROUNDS = 3
_WARM_SECONDS, _SECONDS = 2, 6
_CONNECTIONS, _COSTLY_CONNECTIONS = 32, 8
_IMAGES, _SAMPLES = 64, 1024
_COUNTS = (1, 2)
_PORT = 8860


@dataclass(frozen=True)
class Measurement:
    """One turn of one server."""

    alone: ClosedLoopResult
    """A PNG on one connection."""
    loaded: ClosedLoopResult
    """A PNG on many connections."""
    costly: ClosedLoopResult
    """A request of much inference."""
    megabytes: float
    """Memory of all processes; pages that several share count once (PSS)."""
    start_seconds: float


@contextmanager
def _workers(folder: Path, models: Path, count: int) -> Iterator[Server]:
    service = Service(folder, models, _PORT, "--workers", str(count), "--log-level", "warning")
    with service:
        yield service.server


@contextmanager
def _replicas(folder: Path, models: Path, count: int) -> Iterator[Server]:
    arguments = {"models_folder": str(models), "control_folder": None}
    options = {"num_replicas": count}
    with RayCluster(PYTHON, folder, _PORT, count, arguments, options) as cluster:
        cluster.wait_until_ready(count)
        yield cluster.server


_SERVERS = {
    **{f"service, --workers {count}": (_workers, count) for count in _COUNTS},
    **{f"Ray Serve, num_replicas {count}": (_replicas, count) for count in _COUNTS},
}


def _measure(name: str, models: Path, scratch: Path) -> Measurement:
    """Start a server, measure it and end it; SystemExit if it refuses or loses a request."""
    start, count = _SERVERS[name]
    image, costly = _targets()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        load = LoadGenerator("", scratch)
        began = time.monotonic()
        with start(Path(folder), models, count) as server:
            seconds = time.monotonic() - began
            load.closed_loop(image, _CONNECTIONS, _WARM_SECONDS)
            results = (
                load.closed_loop(image, 1, _SECONDS),
                load.closed_loop(image, _CONNECTIONS, _SECONDS),
                load.closed_loop(costly, _COSTLY_CONNECTIONS, _SECONDS),
            )
            megabytes = server.proportional_memory()
    if any(each.refused or each.lost for each in results):
        raise SystemExit(f"{name} refused or lost requests: {results}")
    return Measurement(*results, megabytes, seconds)


def _targets() -> tuple[Target, Target]:
    """Return the cheap request and the costly one."""
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, 1, 8, 8)) / 255
    image = images[0].astype(np.float32)
    body = orjson.dumps({"instances": images[:, 0].round(3).tolist()})
    costly = Content({"Content-Type": JSON}, body)
    path = f"/uncertainty?samples={_SAMPLES}"
    return Target(_PORT, "/predict", png(image)), Target(_PORT, path, costly)


def _row(name: str, turns: Sequence[Measurement]) -> tuple[str, ...]:
    """Return a line of medians."""

    def median(values: Iterator[float], digits: int = 0) -> str:
        return f"{statistics.median(values):,.{digits}f}"

    return (
        name,
        median(each.loaded.rate for each in turns),
        median((each.loaded.p50 for each in turns), 1),
        median((each.loaded.p99 for each in turns), 1),
        median((each.alone.p50 for each in turns), 2),
        median((each.alone.p99 for each in turns), 2),
        median((each.costly.rate for each in turns), 1),
        median(each.costly.p99 for each in turns),
        median(each.megabytes for each in turns),
        median(each.start_seconds for each in turns),
    )


_COLUMNS = (
    "server",
    f"requests/s, {_CONNECTIONS} connections",
    "p50, ms",
    "p99, ms",
    "p50 of 1 connection, ms",
    "p99, ms",
    f"{_IMAGES} images a request: requests/s",
    "p99, ms",
    "memory, MB",
    "start, s",
)


def main() -> None:
    """Measure in turns and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--models-folder", type=Path, default=ROOT / "models")
    parsed = parser.parse_args()
    end_like_ctrl_c()
    if not PYTHON.exists():
        raise SystemExit("There is no environment with Ray; make it with `make .venv-ray`.")
    console = Console(stderr=True)
    turns: dict[str, list[Measurement]] = {name: [] for name in _SERVERS}
    scratch = ROOT / "build" / "ray-beside-workers"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for number in range(1 if parsed.quick else _ROUNDS):
        for name, measured in turns.items():
            console.log(f"round {number + 1}: {name}")
            measured.append(_measure(name, parsed.models_folder.resolve(), scratch))
    rows = [_row(name, measured) for name, measured in turns.items()]
    sys.stdout.write(f"{describe_machine()}\n\n{markdown_table(_COLUMNS, rows)}\n")


if __name__ == "__main__":
    main()
