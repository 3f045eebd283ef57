"""Restart the service under load: is an accepted request lost, and does the service end in time?

    python -m benchmarks.reliability.rolling [--quick] [--record] [--only restarts,hang,…]

32 clients send without a pause, over kept-alive connections or over new ones, to one worker and to
two. The service gets SIGTERM, and a new one is started on its port when it has ended. A request is
lost if it was sent on an open connection and no response came; a refused connection is tried again.
Then the service gets SIGTERM while something blocks: a FIFO in a bundle's folder, a standard output
that nobody reads, a lock of the releases held by another process, an image that takes long to
decode. It has to end within --grace-seconds and two seconds.
Then three replicas stand behind HAProxy, then nginx: each is restarted, again and again (`--only
replicas`), and killed (`--only kills`), while clients compare every answer with the right one.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.reliability import replica_kills, rolling_replicas
from benchmarks.reliability.bombs import progressive_jpeg
from benchmarks.reliability.clients import Client, ClientStats, load_while
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.requests import infer
from benchmarks.reliability.services import Service, control_listener
from benchmarks.reliability.wire import exchange, request
from benchmarks.serving.environments import ROOT

_ROUNDS, _QUICK_ROUNDS = 100, 6
_CLIENTS = 32
_GRACE_SECONDS = 3
_MARGIN_SECONDS = 2.0
_LOAD_SECONDS = 0.7
_TIMEOUT_SECONDS = 15.0


def measure(options: Options) -> Report:
    """Restart the service under load, then end it while something blocks."""
    rows: list[tuple[str, ...]] = []
    criteria: list[Criterion] = []
    notes: list[str] = []
    if options.includes("restarts"):
        _restarts(options, rows, criteria)
    if options.includes("hang"):
        _end_while_blocked(options, rows, criteria)
    if options.includes("replicas"):
        rolling_replicas.restart_replicas(options, rows, criteria, notes)
    if options.includes("kills"):
        replica_kills.kill_replicas(options, rows, criteria, notes)
    return Report(
        title="Restarts under load",
        setting=f"{options}; the services have all cores. One service: {_CLIENTS} clients in a "
        f"closed loop, --grace-seconds {_GRACE_SECONDS}. "
        f"{rolling_replicas.SETTING} {replica_kills.SETTING}",
        columns=("case", "times", "sent", "responses", "lost", "seconds to the end"),
        rows=rows,
        criteria=criteria,
        notes=notes,
    )


def _restarts(options: Options, rows: list[tuple[str, ...]], criteria: list[Criterion]) -> None:
    cases = [(keep, workers) for workers in (1, 2) for keep in (True, False)]
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    lost, slowest = 0, 0.0
    for index, (keep, workers) in enumerate(cases):
        title = f"{'kept-alive' if keep else 'new connections'}, {workers} worker(s)"
        count = len(range(index, rounds, len(cases)))
        options.log(f"{count} restarts: {title}")
        stats = ClientStats()
        times = asyncio.run(_restart_under_load(options, stats, count, keep=keep, workers=workers))
        description = ", ".join(
            f"{name}: {count:,}" for name, count in sorted(stats.counts.items()) if name != "sent"
        )
        sent, most = f"{stats.counts['sent']:,}", f"{max(times):.1f} at most"
        rows.append((title, f"{count}", sent, description, f"{stats.lost}", most))
        lost += stats.lost + stats.counts["late"]
        slowest = max(slowest, *times)
    criteria.append(Criterion("accepted requests lost", f"{lost}", "0", lost == 0))
    criteria.append(_in_time("under load", slowest))


async def _restart_under_load(
    options: Options, stats: ClientStats, rounds: int, *, keep: bool, workers: int
) -> list[float]:
    """End a service under load and start another, `rounds` times.

    Returns the seconds until each end.
    """
    quiet = ("--log-level", "warning")
    times: list[float] = []

    def start(number: int) -> Service:
        folder = options.folder(f"restart-{keep}-{workers}-{number}")
        service = Service(folder, options.models_folder, options.port, *_flags(workers), *quiet)
        return stack.enter_context(service)

    async def action() -> None:
        service = first
        for number in range(1, rounds + 1):
            await asyncio.sleep(_LOAD_SECONDS)
            times.append(await asyncio.to_thread(_terminate, service))
            await asyncio.to_thread(service.server.end)
            service = await asyncio.to_thread(start, number)
        await asyncio.sleep(_LOAD_SECONDS)

    # The clients stop while the last service still answers; otherwise its end would count too.
    with ExitStack() as stack:
        first = await asyncio.to_thread(start, 0)
        message = infer() if keep else infer("Connection: close")
        clients = [
            Client(first.address, [message], stats, keep_alive=keep) for _ in range(_CLIENTS)
        ]
        await load_while(clients, action)
    return times


def _terminate(service: Service) -> float:
    """Send SIGTERM; return the seconds until the process has ended, at most the timeout."""
    started = time.monotonic()
    os.kill(service.pid, signal.SIGTERM)
    while service.server.status is None and time.monotonic() < started + _TIMEOUT_SECONDS:
        time.sleep(0.01)
    return time.monotonic() - started


def _in_time(name: str, seconds: float) -> Criterion:
    most = _GRACE_SECONDS + _MARGIN_SECONDS
    description = f"{seconds:.1f} s" if seconds < _TIMEOUT_SECONDS else f"over {seconds:.0f} s"
    return Criterion(f"end, {name}", description, f"at most {most:g} s", seconds <= most)


def _end_while_blocked(
    options: Options, rows: list[tuple[str, ...]], criteria: list[Criterion]
) -> None:
    for name, blocker in _BLOCKERS.items():
        for workers in (1,) if options.quick else (1, 2):
            title = f"{name}, {workers} worker(s)"
            options.log(title)
            seconds = blocker(options, workers)
            rows.append((title, "1", "", "", "", f"{seconds:.1f}"))
            criteria.append(_in_time(title, seconds))


def _flags(workers: int) -> tuple[str, ...]:
    return ("--workers", str(workers), "--grace-seconds", str(_GRACE_SECONDS))


def _fifo(options: Options, workers: int) -> float:
    """A new version's folder holds a FIFO that nobody writes to."""
    folder = options.folder(f"fifo-{workers}")
    models = _copy_models(options, folder)
    with Service(folder, models, options.port, *_flags(workers)) as service:
        version = models / "digits" / "2"
        shutil.copytree(models / "digits" / "1", folder / "draft")
        (folder / "draft" / "manifest.json").unlink()
        os.mkfifo(folder / "draft" / "manifest.json")
        (folder / "draft").rename(version)
        time.sleep(2.5)  # two scans of the folder
        return _terminate(service)


def _copy_models(options: Options, folder: Path) -> Path:
    models = folder / "models"
    shutil.copytree(options.models_folder / "digits", models / "digits")
    return models


def _unread_output(options: Options, workers: int) -> float:
    """The service's standard output is a pipe that nobody reads."""
    folder = options.folder(f"output-{workers}")
    program = [sys.executable, "-m", "service", "--port", str(options.port)]
    program += ["--models-folder", str(options.models_folder), *_flags(workers)]
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with (folder / "log.txt").open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603
            program, cwd=ROOT, stdout=write, stderr=errors, start_new_session=True
        )
    os.close(write)
    address = ("127.0.0.1", options.port)
    try:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        ready = request("GET", "/health/ready")
        while (response := exchange(address, ready, timeout=1)) is None or response.status != 200:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for _ in range(100):  # each request logs a line
            if exchange(address, infer(), timeout=0.5) is None:
                break
        started = time.monotonic()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TIMEOUT_SECONDS)
        return time.monotonic() - started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(read)


def _held_lock(options: Options, workers: int) -> float:
    """Another process holds the lock of the releases, and a pin waits for it."""
    folder = options.folder(f"lock-{workers}")
    control = folder / "control"
    control.mkdir()
    control_flags, control_address = control_listener(options.port)
    flags = ("--control-folder", str(control), *control_flags, *_flags(workers))
    with (
        Service(folder, options.models_folder, options.port, *flags) as service,
        (control / "releases.lock").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = request("POST", "/models/digits/pin?version=1", b"")
        with _in_background(lambda: exchange(control_address, message, timeout=_TIMEOUT_SECONDS)):
            time.sleep(0.5)
            return _terminate(service)


def _image_bomb(options: Options, workers: int) -> float:
    """A request with an image that takes long to decode is in flight."""
    folder = options.folder(f"bomb-{workers}")
    message = request("POST", "/predict", progressive_jpeg(), "Content-Type: image/jpeg")
    with (
        Service(folder, options.models_folder, options.port, *_flags(workers)) as service,
        _in_background(lambda: exchange(service.address, message, timeout=2 * _TIMEOUT_SECONDS)),
    ):
        time.sleep(1)
        return _terminate(service)


@contextmanager
def _in_background(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield


_BLOCKERS: dict[str, Callable[[Options, int], float]] = {
    "a FIFO in a bundle": _fifo,
    "an output nobody reads": _unread_output,
    "a held lock of the releases": _held_lock,
    "an image bomb": _image_bomb,
}


if __name__ == "__main__":
    sys.exit(run("rolling", __doc__, measure, sys.argv[1:], 8520))
