"""Attacks on what is scarce, one after the other: what is left for clients that behave?

    python -m benchmarks.reliability.hostile [--quick] [--record] [--only NAME,NAME] [--cgroup PATH]

The service has its defaults, one core and 2 GiB: in a cgroup made in --cgroup, or else it is
weighed five times a second and its heaviest process killed above that. Attackers come from
127.0.0.2 to 127.0.0.9, from a process of their own at low priority on the other core. Good clients
come from 127.0.0.1 and send eight requests a second each, of mixed kinds, half of them over
kept-alive connections; a probe asks for /health/live twenty times a second, each on a connection of
its own. Kept: their answers 200 against those of as many seconds just before the attack.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.reliability.attackers import LINGERED, READY, SWALLOWED, attacks
from benchmarks.reliability.clients import Client, Seen, load_while
from benchmarks.reliability.faults import SkippedError, fill, tmpfs
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Bar, Report
from benchmarks.reliability.requests import mixed
from benchmarks.reliability.services import MemoryWatch, Service
from benchmarks.reliability.wire import request
from benchmarks.serving.environments import ROOT
from benchmarks.serving.servers import ServerFailedError

_GOOD_CLIENTS = 6
_EVERY_SECONDS = 0.125
_PROBE_SECONDS = 0.05
_SOURCE = "127.0.0.1"
_ATTACK_SECONDS, _QUICK_ATTACK_SECONDS = 10.0, 3.0
_BEFORE_SECONDS, _QUICK_BEFORE_SECONDS = 5.0, 2.0
_SETTLE_SECONDS = 5.0
_AFTER_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0
_AT_LEAST_SECONDS = {"a byte a second behind 408": 45.0}
"""The time for a body is 30 s by default."""
_MOST_NOTED = {SWALLOWED: 100.0, LINGERED: 5.0}
_KEPT = 0.8
_MOST_MILLISECONDS = 250.0
_MOST_MB = 2**30 / 1e6
_FULL_DISK = "a full temporary folder"
_DESCRIPTORS = "silent connections"
_MOST_DESCRIPTORS = 1024
_TMPFS_KILOBYTES = 20_000
_QUICK = (
    "256 heads without a body",
    "answers never read",
    "24 MB of pipelined GETs",
    "a progressive JPEG",
    "a form of PNGs with text",
    "gzip: lists of 0",
    "costly requests and hanging up",
    "1024 greedy retriers",
)


@dataclass(frozen=True)
class Stretch:
    """What good clients and the probe saw for a while."""

    seconds: float
    good: Seen
    live: Seen

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good.good / self.seconds

    @property
    def live_p99(self) -> float:
        """Milliseconds; those without an answer lasted as long as the probe's patience."""
        return _with_losses(self.live, 0.99)

    @property
    def live_told(self) -> str:
        """p50, p99 and most, milliseconds."""
        return " / ".join(f"{_with_losses(self.live, share):,.0f}" for share in (0.5, 0.99, 1))


def _with_losses(seen: Seen, share: float) -> float:
    failed = seen.lost + seen.counts["late"] + seen.counts["refused"]
    whole = Seen(latencies=[*seen.latencies, *[_PATIENCE_SECONDS] * failed])
    return whole.percentile(share)


@dataclass(frozen=True)
class Attacked:
    """What one attack did."""

    name: str
    before: Stretch
    during: Stretch
    after: Stretch
    """From 5 s after its end."""
    peak: float
    """MB, of all processes of the service."""
    was_killed: bool
    ended: bool
    """Whether the service has ended by itself."""
    noted: dict[str, float]
    """What the attackers noted."""

    @property
    def kept(self) -> float:
        """Of the good clients' answers; they send no more than they did before."""
        return min(1.0, self.during.rate / max(1e-9, self.before.rate))

    @property
    def recovered(self) -> float:
        """The same, afterwards."""
        return min(1.0, self.after.rate / max(1e-9, self.before.rate))

    @property
    def misses(self) -> list[str]:
        """The bars that were missed."""
        wrong = {
            "answers": self.kept < _KEPT,
            "statuses": bool(set(self.during.good.counts) - {"200", "503", "sent"}),
            "health": not self.during.live_p99 <= _MOST_MILLISECONDS,
            "memory": self.peak > _MOST_MB or self.was_killed,
            "after": self.recovered < 0.9 or not self.after.live_p99 <= _MOST_MILLISECONDS,
            "ended": self.ended,
            **{what: self.noted.get(what, 0.0) > most for what, most in _MOST_NOTED.items()},
        }
        return [name for name, is_wrong in wrong.items() if is_wrong]


def measure(options: Options) -> Report:
    """Attack, each time a service of its own."""
    names = [*attacks(), _FULL_DISK]
    chosen = [each for each in names if options.wants(each)]
    if options.quick and not options.only:
        chosen = list(_QUICK)
    found: list[Attacked] = []
    failed: list[Bar] = []
    notes = []
    for index, name in enumerate(chosen):
        try:
            found.append(_attacked(options, index, name))
        except SkippedError as error:
            notes.append(f"Left out, {name}: {error}")
            continue
        except ServerFailedError as error:
            failed.append(Bar(name, f"{error}"[:120], "all", is_kept=False))
            continue
        missed = ", ".join(found[-1].misses) or "none"
        options.say(f"{name}: kept {found[-1].kept:.0%}; bars missed: {missed}")
    return _report(options, found, failed, notes)


def _attacked(options: Options, index: int, name: str) -> Attacked:
    folder = options.folder(f"attack-{index}")
    with (
        _place(name, folder) as (flags, environment, wrapper),
        Service(
            folder,
            options.models_folder,
            options.port + index % 50,
            "--log-level",
            "warning",
            *flags,
            cores=options.service_cores,
            environment=environment,
            cgroup=options.cgroup,
            wrapper=wrapper,
        ) as service,
    ):
        watch = MemoryWatch(service)
        watch.start()
        quick = options.quick
        _stretch(service, 0.5)  # warm
        before = _stretch(service, _QUICK_BEFORE_SECONDS if quick else _BEFORE_SECONDS)
        seconds = _QUICK_ATTACK_SECONDS if quick else _ATTACK_SECONDS
        seconds = max(seconds, _AT_LEAST_SECONDS.get(name, 0.0))
        noted: dict[str, float] = {}
        with _attacking(name, folder, service, seconds, noted):
            during = _stretch(service, seconds)
        time.sleep(_SETTLE_SECONDS)
        after = _stretch(service, _AFTER_SECONDS)
        peak = watch.end()
        ended = service.server.status is not None
        return Attacked(name, before, during, after, peak, watch.was_killed, ended, noted)


_Place = tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]
"""The service's flags, its environment, and what runs it."""


@contextmanager
def _place(name: str, folder: Path) -> Iterator[_Place]:
    """Make little of what is attacked: a small disk, as few descriptors as Debian's default."""
    if name == _DESCRIPTORS:
        yield (), {}, ("/bin/sh", "-c", f'ulimit -n {_MOST_DESCRIPTORS} && exec "$@"', "sh")
        return
    if name != _FULL_DISK:
        yield (), {}, ()
        return
    small = folder / "small"
    small.mkdir()
    with tmpfs(small, _TMPFS_KILOBYTES):
        yield ("--workers", "2"), {"TMPDIR": str(small)}, ()


@contextmanager
def _attacking(
    name: str, folder: Path, service: Service, seconds: float, noted: dict[str, float]
) -> Iterator[None]:
    if name == _FULL_DISK:
        fill(folder / "small")
        name = "long queries"  # each is a line of the log, and a series of the metrics
    program = [sys.executable, "-m", "benchmarks.reliability.attackers", name]
    program += ["--port", str(service.address[1]), "--seconds", str(seconds)]
    with (folder / "attackers.txt").open("wb") as log:
        attacker = subprocess.Popen(  # noqa: S603
            ["/usr/bin/env", "nice", "-n", "10", *program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert attacker.stdout is not None
        said = attacker.stdout.readline().decode().strip()
        if said != READY:
            raise ServerFailedError("the attackers do not start; see attackers.txt")
        yield
    finally:
        with suppress(subprocess.TimeoutExpired, orjson.JSONDecodeError):
            attacker.wait(5)
            noted |= orjson.loads(attacker.stdout.read()) if attacker.stdout else {}
        attacker.kill()
        attacker.wait()
        if attacker.stdout is not None:
            attacker.stdout.close()


def _stretch(service: Service, seconds: float) -> Stretch:
    good, live = Seen(), Seen()
    clients = [
        Client(
            service.address,
            mixed() if number % 2 else mixed("Connection: close"),
            good,
            keep_alive=bool(number % 2),
            source=_SOURCE,
            every=_EVERY_SECONDS,
            timeout=_PATIENCE_SECONDS,
        )
        for number in range(_GOOD_CLIENTS)
    ]
    probe = request("GET", "/health/live", None, "Connection: close")
    clients += [
        Client(
            service.address,
            [probe],
            live,
            keep_alive=False,
            source=_SOURCE,
            every=_PROBE_SECONDS,
            timeout=_PATIENCE_SECONDS,
        )
    ]
    begun = time.monotonic()
    asyncio.run(load_while(clients, lambda: asyncio.sleep(seconds)))
    # A client that waits for an answer waits on when the time is over.
    return Stretch(max(seconds, time.monotonic() - begun), good, live)


def _report(options: Options, found: list[Attacked], failed: list[Bar], notes: list[str]) -> Report:
    rows = [
        (
            each.name,
            f"{each.kept:.0%}",
            each.during.good.worst,
            each.during.live_told,
            f"{each.peak:,.0f}" + (" (killed)" if each.was_killed else ""),
            f"{each.recovered:.0%}",
            each.after.live_told,
            ", ".join(each.misses),
        )
        for each in found
    ]
    notes = [
        *notes,
        *(
            f"{each.name}: {what}: {most:,.1f}."
            for each in found
            for what, most in each.noted.items()
        ),
    ]
    limit = "in a cgroup" if options.cgroup else "weighed, and killed above that"
    bars = [
        Bar(each.name, ", ".join(each.misses) or "all", "all", not each.misses) for each in found
    ]
    return Report(
        title="Attacks, and what is left for others",
        setting=f"{options}. The service on core {options.service_cores} with 2 GiB ({limit}), "
        "default settings; the others on the other core. /health/live: p50 / p99 / most, "
        f"milliseconds. Bars: at least {_KEPT:.0%} of good clients' answers kept, only 200 and "
        f"503; /health/live at most {_MOST_MILLISECONDS:g} ms in the 99th percentile; memory at "
        "most 1 GiB (MB, shared pages once); after 5 s as before.",
        columns=(
            "attack",
            "kept",
            "worst",
            "live",
            "MB",
            "kept after",
            "live after",
            "missed",
        ),
        rows=rows,
        bars=[*bars, *failed],
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(run("hostile", __doc__, measure, sys.argv[1:], 8550))
