"""Faults that come without an attacker: what do the clients of two workers lose, and is all well?

    python -m benchmarks.reliability.faults [--quick] [--record] [--only NAME,NAME]

kill: a worker is killed under load (what it had in hand is lost; nobody may get a 503 for it).
kill-parent: the supervisor is killed; its workers must not go on without it. stop: a worker is held
still for 3 s. full-disk: the temporary folder fills up (a small tmpfs; needs root). memory: the
address space ends early. releases: `releases.json` is damaged while serving, at start, and mended.
models: the models' folder is taken away and put back. clock: it jumps a year ahead and back (needs
faketime). A slow disk is not among them: it takes a device mapper.
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
from benchmarks.reliability.clients import Client, Seen, load_while
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Bar, Report
from benchmarks.reliability.requests import infer, mixed
from benchmarks.reliability.services import Service, control_listener
from benchmarks.reliability.wire import ask, request
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
    """A fault cannot be made here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    seen: Seen
    bars: Sequence[Bar]
    told: str = ""
    """What else there is to say."""


def measure(options: Options) -> Report:
    """Make each fault in turn."""
    rows, bars, notes = [], [], []
    for name, fault in _FAULTS.items():
        if not options.wants(name):
            continue
        options.say(name)
        try:
            outcome = fault(options)
        except SkippedError as error:
            notes.append(f"Left out, {name}: {error}")
            continue
        except ServerFailedError as error:
            bars.append(Bar(name, str(error)[:120], "it serves", is_kept=False))
            continue
        counts = sorted(outcome.seen.counts.items())
        told = ", ".join(f"{what}: {count:,}" for what, count in counts if what != "sent")
        rows.append((name, told, f"{outcome.seen.percentile(1):,.0f}", outcome.told))
        bars += outcome.bars
    return Report(
        title="Faults",
        setting=f"{options}; two workers on all cores, {_CLIENTS} clients in a closed loop.",
        columns=("fault", "answers", "slowest, ms", "seen"),
        rows=rows,
        bars=bars,
        notes=notes,
    )


def _loaded(
    service: Service, happening: Callable[[], None], after: float, messages: Sequence[bytes] = ()
) -> Seen:
    """Let something happen under load; return what the clients saw."""
    seen = Seen()

    async def happens() -> None:
        await asyncio.sleep(_BEFORE_SECONDS)
        await asyncio.to_thread(happening)
        await asyncio.sleep(after)

    async def load() -> None:
        clients = [
            Client(service.address, messages or [infer()], seen, keep_alive=number % 2 == 0)
            for number in range(_CLIENTS)
        ]
        await load_while(clients, happens)

    asyncio.run(load())
    return seen


def _after(options: Options) -> float:
    return _QUICK_AFTER_SECONDS if options.quick else _AFTER_SECONDS


def _no_errors(name: str, seen: Seen, allowed: frozenset[str] = frozenset({"200"})) -> Bar:
    odd = {
        what: count
        for what, count in seen.counts.items()
        if what not in allowed | {"sent", "refused"} and not what.startswith("lost")
    }
    told = ", ".join(f"{what}: {count}" for what, count in odd.items()) or "none"
    return Bar(f"{name}: other answers than {', '.join(sorted(allowed))}", told, "none", not odd)


def _is_well(name: str, service: Service) -> Bar:
    """Whether it serves, with two workers, once all is over."""
    answers = [ask(service.address, infer(), timeout=5) for _ in range(10)]
    good = sum(answer is not None and answer.status == 200 for answer in answers)
    workers = len(service.workers())
    told = f"{good} of {len(answers)} answered by {workers} workers"
    return Bar(f"{name}: well afterwards", told, "10 of 10 by 2", (good, workers) == (10, 2))


def _kill(options: Options) -> Outcome:
    folder = options.folder("kill")
    with Service(folder, options.models_folder, options.port, *_WORKERS) as service:
        before = service.workers()
        seen = _loaded(service, lambda: os.kill(before[0], signal.SIGKILL), _after(options))
        replaced = before[0] not in service.workers()
        most = _CLIENTS
        lost = Bar("kill: lost", f"{seen.lost}", f"at most {most}", seen.lost <= most)
        bars = [lost, _no_errors("kill", seen), _is_well("kill", service)]
        return Outcome(seen, bars, "replaced" if replaced else "not replaced")


def _kill_parent(options: Options) -> Outcome:
    folder = options.folder("kill-parent")
    service = Service(folder, options.models_folder, options.port, *_WORKERS)
    with service:
        workers = service.workers()
        os.kill(service.pid, signal.SIGKILL)
        begun = time.monotonic()
        while left := [each for each in workers if _lives(each)]:
            if time.monotonic() > begun + _ORPHANS_SECONDS:
                break
            time.sleep(0.05)
        told = f"{len(left)} of {len(workers)} live on after {time.monotonic() - begun:.1f} s"
        bars = [Bar("kill-parent: workers left", told, f"0 in {_ORPHANS_SECONDS:g} s", not left)]
    return Outcome(Seen(), bars)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _stop(options: Options) -> Outcome:
    with Service(options.folder("stop"), options.models_folder, options.port, *_WORKERS) as service:
        worker = service.workers()[0]

        def hold() -> None:
            os.kill(worker, signal.SIGSTOP)
            time.sleep(3)
            os.kill(worker, signal.SIGCONT)

        seen = _loaded(service, hold, _after(options))
        same = worker in service.workers()
        bars = [
            Bar("stop: lost", f"{seen.lost}", "0", seen.lost == 0),
            _no_errors("stop", seen),
            _is_well("stop", service),
        ]
        return Outcome(seen, bars, "the same worker goes on" if same else "the worker was killed")


@contextmanager
def tmpfs(folder: Path, kilobytes: int) -> Iterator[None]:
    """Mount a small file system in memory.

    Raises:
        SkippedError: this user may not.
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


def _full_disk(options: Options) -> Outcome:
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
            seen = _loaded(service, lambda: fill(small), _after(options), _every_route())
            same = before == service.workers()
            bars = [
                Bar("full-disk: lost", f"{seen.lost}", "0", seen.lost == 0),
                _no_errors("full-disk", seen, frozenset({"200", "400", "404", "405", "415"})),
                Bar("full-disk: workers died", "no" if same else "yes", "no", same),
                _is_well("full-disk", service),
            ]
        return Outcome(seen, bars)


def fill(folder: Path) -> None:
    """Write a file until the file system is full."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return


def _every_route() -> list[bytes]:
    """Requests that make new series of metrics, each in a place of its own on the disk."""
    odd = [
        request(method, path, None if method == "GET" else b"{}", "Content-Type: application/json")
        for path in _PATHS
        for method in _METHODS
    ]
    return [message for each in odd for message in (each, infer())]


def _memory(options: Options) -> Outcome:
    """Each process may take so much address space and no more, as ulimit -v says."""
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

        def throw() -> None:
            for bomb in bombs:
                ask(service.address, bomb, timeout=10)

        before = service.workers()
        seen = _loaded(service, throw, _after(options), mixed())
        same = before == service.workers()
        bars = [
            Bar("memory: lost", f"{seen.lost}", "0", seen.lost == 0),
            _no_errors("memory", seen, frozenset({"200", "503"})),
            _is_well("memory", service),
        ]
        told = "the same workers" if same else "workers died"
        return Outcome(seen, bars, f"{len(bombs)} image bombs meanwhile; {told}")


def _releases(options: Options) -> Outcome:
    folder = options.folder("releases")
    control = folder / "control"
    control.mkdir()
    file = control / "releases.json"
    models = folder / "models"
    shutil.copytree(options.models_folder / "digits", models / "digits")
    its, address = control_listener(options.port)
    flags = (*_WORKERS, "--control-folder", str(control), *its)
    bars = []
    with Service(folder, models, options.port, *flags) as service:
        pinned = ask(address, request("POST", "/models/digits/pin?version=1", b""), timeout=60)
        assert pinned is not None, "the control listener does not answer"
        assert pinned.status == 200, pinned
        good = file.read_bytes()

        def damage() -> None:
            file.write_bytes(b"{damaged")

        seen = _loaded(service, damage, _after(options) / 2)
        bars += [
            Bar("releases: lost", f"{seen.lost}", "0", seen.lost == 0),
            _no_errors("releases", seen),
        ]
        mended, follow = [], request("POST", "/models/digits/follow", b"")
        damaged = ask(address, follow, timeout=60)
        refused = damaged is not None and damaged.status >= 400
        bars.append(Bar("releases: a change while damaged", f"{refused}", "True", refused))
        for what in ("mended", "deleted"):
            if what == "mended":
                file.write_bytes(good)
            else:
                file.write_bytes(b"{damaged")
                time.sleep(2.5)
                file.unlink()
            time.sleep(2.5)
            answer = ask(address, follow, timeout=60)
            mended.append(answer is not None and answer.status == 200)
            told = "accepted" if mended[-1] else f"refused: {answer and answer.body!r}"
            bars.append(Bar(f"releases: a change after {what}", told, "accepted", mended[-1]))
        file.write_bytes(good)
        time.sleep(2.5)
        bars.append(_is_well("releases", service))
    file.write_bytes(b"{damaged")
    bars.append(_starts_closed(options, models, flags))
    return Outcome(seen, bars)


def _starts_closed(options: Options, models: Path, flags: tuple[str, ...]) -> Bar:
    """Whether a service that cannot read its pins at start serves nothing rather than anything."""
    folder = options.folder("releases-at-start")
    service = Service(folder, models, options.port, *flags)
    try:
        service.wait_until_ready(8)
        is_closed = False
    except ServerFailedError:
        is_closed = True
    finally:
        service.__exit__()
    told = "not ready" if is_closed else "ready, and serves the newest"
    return Bar("releases: started on a damaged file", told, "not ready", is_closed)


def _models(options: Options) -> Outcome:
    folder = options.folder("models")
    models = folder / "models"
    shutil.copytree(options.models_folder / "digits", models / "digits")
    with Service(folder, models, options.port, *_WORKERS) as service:

        def take_away() -> None:
            models.rename(folder / "away")
            time.sleep(3)
            (folder / "away").rename(models)
            time.sleep(2)

        seen = _loaded(service, take_away, 1.0)
        deadline = time.monotonic() + 10
        while not service.is_ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        bars = [
            Bar("models: lost", f"{seen.lost}", "0", seen.lost == 0),
            _no_errors("models", seen),
            _is_well("models", service),
        ]
        return Outcome(seen, bars, "taken away for 3 s")


def _clock(options: Options) -> Outcome:
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
        seen = _loaded(service, jump, 1.0)
        same = before == service.workers()
        bars = [
            Bar("clock: lost", f"{seen.lost}", "0", seen.lost == 0),
            _no_errors("clock", seen),
            Bar("clock: workers died", "no" if same else "yes", "no", same),
            _is_well("clock", service),
        ]
        return Outcome(seen, bars, "a year ahead, a year back, and again")


_FAULTS: dict[str, Callable[[Options], Outcome]] = {
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
