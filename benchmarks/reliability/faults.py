"""Inject faults into a service of two workers: what do clients lose, and does it recover?

    python -m benchmarks.reliability.faults [--quick] [--record] [--only NAME,NAME]

kill: a worker is killed under load (its requests in flight are lost; no client may get a 503).
kill-parent: the supervisor is killed; its workers must end too. stop: a worker is suspended for
3 s. full-disk: the temporary folder fills up (a small tmpfs; needs root). memory: the address space
is limited. releases: `releases.json` is corrupted while serving and at start, and restored.
models: the models folder is moved away and back. clock: it jumps a year ahead and back (needs
faketime). A slow disk is not among them: it needs a device mapper.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.bombs import image_bombs
from benchmarks.reliability.clients import Client, ClientStats, load_while
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.requests import infer, mixed
from benchmarks.reliability.services import Service, control_listener
from benchmarks.reliability.wire import exchange, request
from benchmarks.serving.servers import ServerFailedError

_CLIENTS = 32
_WORKERS = ("--workers", "2", "--log-level", "warning")
_BEFORE_SECONDS = 1.5
_AFTER_SECONDS = 6.0
_QUICK_AFTER_SECONDS = 4.0
_ORPHANS_SECONDS = 5.0
_TMPFS_KILOBYTES = 20_000
_ADDRESS_SPACE_KILOBYTES = 3_000_000
_PATHS = ("/uncertainty", "/v2", "/v2/models/digits", "/models", "/docs", "/nope", "/metrics", "/")
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


class SkippedError(Exception):
    """A fault cannot be injected on this machine; the message gives the reason."""


@dataclass(frozen=True)
class FaultResult:
    """The responses that clients got during one fault, and the criteria."""

    stats: ClientStats
    criteria: Sequence[Criterion]
    observation: str = ""
    """A further observation, for the table."""


def measure(options: Options) -> Report:
    """Inject each fault in turn."""
    rows, criteria, notes = [], [], []
    for name, fault in _FAULTS.items():
        if not options.includes(name):
            continue
        options.log(name)
        try:
            result = fault(options)
        except SkippedError as error:
            notes.append(f"Left out, {name}: {error}")
            continue
        except ServerFailedError as error:
            criteria.append(Criterion(name, str(error)[:120], "it serves", is_met=False))
            continue
        counts = sorted(result.stats.counts.items())
        statuses = ", ".join(f"{key}: {count:,}" for key, count in counts if key != "sent")
        rows.append((name, statuses, f"{result.stats.percentile(1):,.0f}", result.observation))
        criteria += result.criteria
    return Report(
        title="Faults",
        setting=f"{options}; two workers on all cores, {_CLIENTS} clients in a closed loop.",
        columns=("fault", "responses", "slowest, ms", "observed"),
        rows=rows,
        criteria=criteria,
        notes=notes,
    )


def _run_under_load(
    service: Service, action: Callable[[], None], after: float, messages: Sequence[bytes] = ()
) -> ClientStats:
    """Run an action under load; return the statistics of the clients."""
    stats = ClientStats()

    async def delayed_action() -> None:
        await asyncio.sleep(_BEFORE_SECONDS)
        await asyncio.to_thread(action)
        await asyncio.sleep(after)

    async def load() -> None:
        clients = [
            Client(service.address, messages or [infer()], stats, keep_alive=number % 2 == 0)
            for number in range(_CLIENTS)
        ]
        await load_while(clients, delayed_action)

    asyncio.run(load())
    return stats


def _seconds_after(options: Options) -> float:
    return _QUICK_AFTER_SECONDS if options.quick else _AFTER_SECONDS


def _only_statuses(
    name: str, stats: ClientStats, allowed: frozenset[str] = frozenset({"200"})
) -> Criterion:
    odd = {
        key: count
        for key, count in stats.counts.items()
        if key not in allowed | {"sent", "refused"} and not key.startswith("lost")
    }
    observation = ", ".join(f"{key}: {count}" for key, count in odd.items()) or "none"
    return Criterion(
        f"{name}: statuses other than {', '.join(sorted(allowed))}", observation, "none", not odd
    )


def _recovered(name: str, service: Service) -> Criterion:
    """Check that the service answers with two workers after the fault."""
    responses = [exchange(service.address, infer(), timeout=5) for _ in range(10)]
    good = sum(response is not None and response.status == 200 for response in responses)
    workers = len(service.workers())
    observation = f"{good} of {len(responses)} answered by {workers} workers"
    return Criterion(f"{name}: recovered", observation, "10 of 10 by 2", (good, workers) == (10, 2))


def _kill(options: Options) -> FaultResult:
    folder = options.folder("kill")
    with Service(folder, options.models_folder, options.port, *_WORKERS) as service:
        before = service.workers()
        stats = _run_under_load(
            service, lambda: os.kill(before[0], signal.SIGKILL), _seconds_after(options)
        )
        replaced = before[0] not in service.workers()
        most = _CLIENTS
        lost = Criterion("kill: lost", f"{stats.lost}", f"at most {most}", stats.lost <= most)
        criteria = [lost, _only_statuses("kill", stats), _recovered("kill", service)]
        return FaultResult(stats, criteria, "replaced" if replaced else "not replaced")


def _kill_parent(options: Options) -> FaultResult:
    folder = options.folder("kill-parent")
    service = Service(folder, options.models_folder, options.port, *_WORKERS)
    with service:
        workers = service.workers()
        os.kill(service.pid, signal.SIGKILL)
        started = time.monotonic()
        while left := [each for each in workers if _is_running(each)]:
            if time.monotonic() > started + _ORPHANS_SECONDS:
                break
            time.sleep(0.05)
        observation = (
            f"{len(left)} of {len(workers)} still run after {time.monotonic() - started:.1f} s"
        )
        criteria = [
            Criterion(
                "kill-parent: workers left", observation, f"0 in {_ORPHANS_SECONDS:g} s", not left
            )
        ]
    return FaultResult(ClientStats(), criteria)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _stop(options: Options) -> FaultResult:
    with Service(options.folder("stop"), options.models_folder, options.port, *_WORKERS) as service:
        worker = service.workers()[0]

        def suspend() -> None:
            os.kill(worker, signal.SIGSTOP)
            time.sleep(3)
            os.kill(worker, signal.SIGCONT)

        stats = _run_under_load(service, suspend, _seconds_after(options))
        same = worker in service.workers()
        criteria = [
            Criterion("stop: lost", f"{stats.lost}", "0", stats.lost == 0),
            _only_statuses("stop", stats),
            _recovered("stop", service),
        ]
        return FaultResult(
            stats, criteria, "the same worker goes on" if same else "the worker was killed"
        )


@contextmanager
def tmpfs(folder: Path, kilobytes: int) -> Iterator[None]:
    """Mount a small file system in memory.

    Raises:
        SkippedError: this user may not mount it.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SkippedError(f"a tmpfs cannot be mounted ({done.stderr.strip()}); it takes root.")
    try:
        yield
    finally:
        unmount = ["umount", "--lazy", str(folder)]
        subprocess.run(unmount, check=False, capture_output=True)  # noqa: S603


def _full_disk(options: Options) -> FaultResult:
    folder = options.folder("full-disk")
    small = folder / "small"
    small.mkdir()
    with tmpfs(small, _TMPFS_KILOBYTES):
        with Service(
            folder,
            options.models_folder,
            options.port,
            *_WORKERS,
            environment={"TMPDIR": str(small)},
        ) as service:
            before = service.workers()
            stats = _run_under_load(
                service, lambda: fill(small), _seconds_after(options), _every_route()
            )
            same = before == service.workers()
            criteria = [
                Criterion("full-disk: lost", f"{stats.lost}", "0", stats.lost == 0),
                _only_statuses("full-disk", stats, frozenset({"200", "400", "404", "405", "415"})),
                Criterion("full-disk: workers died", "no" if same else "yes", "no", same),
                _recovered("full-disk", service),
            ]
        return FaultResult(stats, criteria)


def fill(folder: Path) -> None:
    """Write a file until the file system is full."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return


def _every_route() -> list[bytes]:
    """Return requests that create new Prometheus series, each with its own place on the disk."""
    requests = [
        request(method, path, None if method == "GET" else b"{}", "Content-Type: application/json")
        for path in _PATHS
        for method in _METHODS
    ]
    return [message for each in requests for message in (each, infer())]


def _memory(options: Options) -> FaultResult:
    """Limit the address space of each process with ulimit -v, and send image bombs."""
    folder = options.folder("memory")
    limited = folder / "limited.sh"
    limited.write_text(f'#!/bin/sh\nulimit -v {_ADDRESS_SPACE_KILOBYTES}\nexec "$@"\n')
    with Service(
        folder,
        options.models_folder,
        options.port,
        *_WORKERS,
        wrapper=("sh", str(limited)),
    ) as service:
        bombs = [write() for write in list(image_bombs().values())[:: 4 if options.quick else 1]]

        def send_bombs() -> None:
            for bomb in bombs:
                exchange(service.address, bomb, timeout=10)

        before = service.workers()
        stats = _run_under_load(service, send_bombs, _seconds_after(options), mixed())
        same = before == service.workers()
        criteria = [
            Criterion("memory: lost", f"{stats.lost}", "0", stats.lost == 0),
            _only_statuses("memory", stats, frozenset({"200", "503"})),
            _recovered("memory", service),
        ]
        observation = "the same workers" if same else "workers died"
        return FaultResult(stats, criteria, f"{len(bombs)} image bombs meanwhile; {observation}")


def _releases(options: Options) -> FaultResult:
    folder = options.folder("releases")
    control = folder / "control"
    control.mkdir()
    file = control / "releases.json"
    models = folder / "models"
    shutil.copytree(options.models_folder / "digits", models / "digits")
    control_flags, address = control_listener(options.port)
    flags = (*_WORKERS, "--control-folder", str(control), *control_flags)
    criteria = []
    with Service(folder, models, options.port, *flags) as service:
        pinned = exchange(address, request("POST", "/models/digits/pin?version=1", b""), timeout=60)
        assert pinned is not None, "the control listener does not answer"
        assert pinned.status == 200, pinned
        good = file.read_bytes()

        def damage() -> None:
            file.write_bytes(b"{damaged")

        stats = _run_under_load(service, damage, _seconds_after(options) / 2)
        criteria += [
            Criterion("releases: lost", f"{stats.lost}", "0", stats.lost == 0),
            _only_statuses("releases", stats),
        ]
        restored, follow = [], request("POST", "/models/digits/follow", b"")
        damaged = exchange(address, follow, timeout=60)
        refused = damaged is not None and damaged.status >= 400
        criteria.append(
            Criterion("releases: a change while damaged", f"{refused}", "True", refused)
        )
        for state in ("restored", "deleted"):
            if state == "restored":
                file.write_bytes(good)
            else:
                file.write_bytes(b"{damaged")
                time.sleep(2.5)
                file.unlink()
            time.sleep(2.5)
            response = exchange(address, follow, timeout=60)
            restored.append(response is not None and response.status == 200)
            observation = "accepted" if restored[-1] else f"refused: {response and response.body!r}"
            criteria.append(
                Criterion(
                    f"releases: a change after {state}", observation, "accepted", restored[-1]
                )
            )
        file.write_bytes(good)
        time.sleep(2.5)
        criteria.append(_recovered("releases", service))
    file.write_bytes(b"{damaged")
    criteria.append(_refuses_damaged_pins(options, models, flags))
    return FaultResult(stats, criteria)


def _refuses_damaged_pins(options: Options, models: Path, flags: tuple[str, ...]) -> Criterion:
    """Check that a service that cannot read its pins at start does not become ready."""
    folder = options.folder("releases-at-start")
    service = Service(folder, models, options.port, *flags)
    try:
        service.wait_until_ready(8)
        is_closed = False
    except ServerFailedError:
        is_closed = True
    finally:
        service.__exit__()
    observation = "not ready" if is_closed else "ready, and serves the newest"
    return Criterion("releases: started on a damaged file", observation, "not ready", is_closed)


def _models(options: Options) -> FaultResult:
    folder = options.folder("models")
    models = folder / "models"
    shutil.copytree(options.models_folder / "digits", models / "digits")
    with Service(folder, models, options.port, *_WORKERS) as service:

        def move_away() -> None:
            models.rename(folder / "away")
            time.sleep(3)
            (folder / "away").rename(models)
            time.sleep(2)

        stats = _run_under_load(service, move_away, 1.0)
        deadline = time.monotonic() + 10
        while not service.is_ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        criteria = [
            Criterion("models: lost", f"{stats.lost}", "0", stats.lost == 0),
            _only_statuses("models", stats),
            _recovered("models", service),
        ]
        return FaultResult(stats, criteria, "moved away for 3 s")


def _clock(options: Options) -> FaultResult:
    if not shutil.which("faketime"):
        raise SkippedError("faketime is not installed here; apt-get install faketime.")
    folder = options.folder("clock")
    step = folder / "clock"
    step.write_text("+0\n")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise SkippedError("libfaketimeMT.so.1 is not where Debian has it.")
    environment = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(step),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Service(
        folder, options.models_folder, options.port, *_WORKERS, environment=environment
    ) as service:

        def jump() -> None:
            for offset in ("+365d", "-365d", "+0"):
                step.write_text(f"{offset}\n")
                time.sleep(2)

        before = service.workers()
        stats = _run_under_load(service, jump, 1.0)
        same = before == service.workers()
        criteria = [
            Criterion("clock: lost", f"{stats.lost}", "0", stats.lost == 0),
            _only_statuses("clock", stats),
            Criterion("clock: workers died", "no" if same else "yes", "no", same),
            _recovered("clock", service),
        ]
        return FaultResult(stats, criteria, "a year ahead, a year back, and again")


_FAULTS: dict[str, Callable[[Options], FaultResult]] = {
    "kill": _kill,
    "kill-parent": _kill_parent,
    "stop": _stop,
    "full-disk": _full_disk,
    "memory": _memory,
    "releases": _releases,
    "models": _models,
    "clock": _clock,
}


if __name__ == "__main__":
    sys.exit(run("faults", __doc__, measure, sys.argv[1:], 8540))
