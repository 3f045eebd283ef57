"""Attack the service, one attack after the other: how many responses do good clients still get?

    python -m benchmarks.reliability.hostile [--quick] [--record] [--only NAME,NAME] [--cgroup PATH]

The service has its default settings, one core and 2 GiB: in a cgroup made in --cgroup, or else its
memory is measured five times a second and its largest process killed above that. Attackers connect
from 127.0.0.2 to 127.0.0.9, from a process of their own at low priority on the other core. Good
clients connect from 127.0.0.1 and send eight requests per second each, of mixed kinds, half of them
over kept-alive connections; a probe requests /health/live twenty times per second, each time on a
new connection and whether or not responses come, and measures from when a request was due. Kept:
the rate of status 200 as a share of that just before the attack.
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

from benchmarks.reliability.attackers import OPEN_AFTER_REFUSAL, READY, SENT_AFTER_REFUSAL, attacks
from benchmarks.reliability.clients import Client, ClientStats, load_while
from benchmarks.reliability.faults import SkippedError, fill, tmpfs
from benchmarks.reliability.health_probe import HealthProbe, ProbeStats
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.requests import mixed
from benchmarks.reliability.services import MemoryWatch, Service
from benchmarks.serving.environments import ROOT
from benchmarks.serving.servers import ServerFailedError

_GOOD_CLIENTS = 6
_REQUEST_SECONDS = 0.125
_SOURCE = "127.0.0.1"
_ATTACK_SECONDS, _QUICK_ATTACK_SECONDS = 10.0, 3.0
_BEFORE_SECONDS, _QUICK_BEFORE_SECONDS = 5.0, 2.0
_SETTLE_SECONDS = 5.0
_AFTER_SECONDS = 3.0
_TIMEOUT_SECONDS = 5.0
_AT_LEAST_SECONDS = {"a byte a second behind 408": 45.0}
"""Longer attacks, by name; the timeout of a body is 30 s by default."""
_MAX_ATTACK_MEASUREMENTS = {SENT_AFTER_REFUSAL: 100.0, OPEN_AFTER_REFUSAL: 5.0}
_MIN_KEPT = 0.8
_MAX_LIVE_MILLISECONDS = 250.0
_NOTED_LATENESS_SECONDS = 0.05
_MAX_MB = 2**30 / 1e6
_FULL_DISK = "a full temporary folder"
_DESCRIPTORS = "silent connections"
_MAX_DESCRIPTORS = 1024
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
class Interval:
    """The responses that good clients and the probe got in an interval."""

    seconds: float
    good: ClientStats
    live: ProbeStats

    @property
    def rate(self) -> float:
        """Responses with status 200 per second."""
        return self.good.good / self.seconds


@dataclass(frozen=True)
class AttackResult:
    """The effect of one attack."""

    name: str
    before: Interval
    during: Interval
    after: Interval
    """From 5 s after the end of the attack."""
    peak: float
    """Peak memory of all processes of the service, MB."""
    was_killed: bool
    ended: bool
    """Whether the service has ended by itself."""
    measured: dict[str, float]
    """The measurements of the attackers."""

    @property
    def kept(self) -> float:
        """Share of the good clients' rate that was kept; they send no more than before."""
        return min(1.0, self.during.rate / max(1e-9, self.before.rate))

    @property
    def recovered(self) -> float:
        """The same share after the attack."""
        return min(1.0, self.after.rate / max(1e-9, self.before.rate))

    @property
    def misses(self) -> list[str]:
        """The names of the missed criteria."""
        missed = {
            "responses": self.kept < _MIN_KEPT,
            "statuses": bool(set(self.during.good.counts) - {"200", "503", "sent"}),
            "health": not self.during.live.p99 <= _MAX_LIVE_MILLISECONDS,
            "memory": self.peak > _MAX_MB or self.was_killed,
            "after": self.recovered < 0.9 or not self.after.live.p99 <= _MAX_LIVE_MILLISECONDS,
            "ended": self.ended,
            **{
                what: self.measured.get(what, 0.0) > most
                for what, most in _MAX_ATTACK_MEASUREMENTS.items()
            },
        }
        return [name for name, is_missed in missed.items() if is_missed]


def measure(options: Options) -> Report:
    """Run each attack against a new service."""
    names = [*attacks(), _FULL_DISK]
    chosen = [each for each in names if options.includes(each)]
    if options.quick and not options.only:
        chosen = list(_QUICK)
    found: list[AttackResult] = []
    failed: list[Criterion] = []
    notes = []
    for index, name in enumerate(chosen):
        try:
            found.append(_run_attack(options, index, name))
        except SkippedError as error:
            notes.append(f"Left out, {name}: {error}")
            continue
        except ServerFailedError as error:
            failed.append(Criterion(name, f"{error}"[:120], "all", is_met=False))
            continue
        missed = ", ".join(found[-1].misses) or "none"
        options.log(f"{name}: kept {found[-1].kept:.0%}; criteria missed: {missed}")
    return _report(options, found, failed, notes)


def _run_attack(options: Options, index: int, name: str) -> AttackResult:
    folder = options.folder(f"attack-{index}")
    with (
        _limited_resources(name, folder) as (flags, environment, wrapper),
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
        _measure_interval(service, 0.5)  # warm
        before = _measure_interval(service, _QUICK_BEFORE_SECONDS if quick else _BEFORE_SECONDS)
        seconds = _QUICK_ATTACK_SECONDS if quick else _ATTACK_SECONDS
        seconds = max(seconds, _AT_LEAST_SECONDS.get(name, 0.0))
        measured: dict[str, float] = {}
        with _attacking(name, folder, service, seconds, measured):
            during = _measure_interval(service, seconds)
        time.sleep(_SETTLE_SECONDS)
        after = _measure_interval(service, _AFTER_SECONDS)
        peak = watch.end()
        ended = service.server.status is not None
        return AttackResult(name, before, during, after, peak, watch.was_killed, ended, measured)


_Surroundings = tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]
"""Flags of the service, environment variables, and the command that runs it."""


@contextmanager
def _limited_resources(name: str, folder: Path) -> Iterator[_Surroundings]:
    """Limit the attacked resource: a small disk, or the number of descriptors of Debian."""
    if name == _DESCRIPTORS:
        yield (), {}, ("/bin/sh", "-c", f'ulimit -n {_MAX_DESCRIPTORS} && exec "$@"', "sh")
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
    name: str, folder: Path, service: Service, seconds: float, measured: dict[str, float]
) -> Iterator[None]:
    if name == _FULL_DISK:
        fill(folder / "small")
        name = "long queries"  # each writes a line of the log and creates a Prometheus series
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
        line = attacker.stdout.readline().decode().strip()
        if line != READY:
            raise ServerFailedError("the attackers do not start; see attackers.txt")
        yield
    finally:
        with suppress(subprocess.TimeoutExpired, orjson.JSONDecodeError):
            attacker.wait(5)
            measured |= orjson.loads(attacker.stdout.read()) if attacker.stdout else {}
        attacker.kill()
        attacker.wait()
        if attacker.stdout is not None:
            attacker.stdout.close()


def _measure_interval(service: Service, seconds: float) -> Interval:
    good, live = ClientStats(), ProbeStats()
    clients = [
        Client(
            service.address,
            mixed() if number % 2 else mixed("Connection: close"),
            good,
            keep_alive=bool(number % 2),
            source=_SOURCE,
            every=_REQUEST_SECONDS,
            timeout=_TIMEOUT_SECONDS,
        )
        for number in range(_GOOD_CLIENTS)
    ]
    probe = HealthProbe(service.address, live, source=_SOURCE, timeout=_TIMEOUT_SECONDS)
    started = time.monotonic()
    asyncio.run(load_while([*clients, probe], lambda: asyncio.sleep(seconds)))
    # A client that still waits for a response makes the interval longer.
    return Interval(max(seconds, time.monotonic() - started), good, live)


def _report(
    options: Options, found: list[AttackResult], failed: list[Criterion], notes: list[str]
) -> Report:
    rows = [
        (
            each.name,
            f"{each.kept:.0%}",
            each.during.good.worst,
            f"{each.during.live}",
            f"{each.peak:,.0f}" + (" (killed)" if each.was_killed else ""),
            f"{each.recovered:.0%}",
            f"{each.after.live}",
            ", ".join(each.misses),
        )
        for each in found
    ]
    limit = "in a cgroup" if options.cgroup else "measured, and killed above that"
    criteria = [
        Criterion(each.name, ", ".join(each.misses) or "all", "all", not each.misses)
        for each in found
    ]
    return Report(
        title="Attacks, and their effect on good clients",
        setting=f"{options}. The service on core {options.service_cores} with 2 GiB ({limit}), "
        "default settings; the others on the other core. /health/live, requested in an open loop: "
        "p50 / p99 / maximum from when a request was due, milliseconds. Criteria: at least "
        f"{_MIN_KEPT:.0%} of good clients' responses kept, only 200 and 503; /health/live at most "
        f"{_MAX_LIVE_MILLISECONDS:g} ms in the 99th percentile; memory at most 1 GiB (MB, shared "
        "pages once); after 5 s as before.",
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
        criteria=[*criteria, *failed],
        notes=[*notes, *_notes(found)],
    )


def _notes(found: list[AttackResult]) -> Iterator[str]:
    """Yield what an attack measured besides, and where the probe itself was late."""
    for each in found:
        for name, peak in each.measured.items():
            yield f"{each.name}: {name}: {peak:,.1f}."
    for each in found:
        late = each.during.live.lateness
        if late > _NOTED_LATENESS_SECONDS:
            yield (
                f"{each.name}: the probe itself came up to {1000 * late:,.0f} ms too late to send, "
                "a part of the times of /health/live."
            )


if __name__ == "__main__":
    sys.exit(run("hostile", __doc__, measure, sys.argv[1:], 8550))
