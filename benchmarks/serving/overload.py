"""Ours alone: at half and at twice what it can do, in a storm, and with two cores.

    python -m benchmarks.serving.overload [--record docs]

Saturation is what wrk gets from 32 connections just before, so each round has its own. Half of it
arrives in an open loop, from a core of its own: at random, and with equal gaps too. (A server that
takes the same time for each request, one after another, has under random arrivals, at half of what
it can do, a p99 of 4.3 times its p50: M/D/1.) Twice of it is sent by h2load, over 1,024 connections
at equal gaps. On two cores services take turns: one worker, two workers, and one worker with two
threads for a run, each with both cores, and one worker with one of them. wrk has the same cores as
the service, and so takes from all alike.
"""

import argparse
import asyncio
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reliability.clients import Client, Seen, load_while
from benchmarks.reliability.wire import request
from benchmarks.serving.comparison import first_answer, image_of
from benchmarks.serving.load import Load, Paced, Stretch, Target
from benchmarks.serving.open_loop import Arrivals, percentiles
from benchmarks.serving.payloads import open_inference
from benchmarks.serving.peers import OURS, Stage, service
from benchmarks.serving.servers import Server
from benchmarks.serving.setup import Setup, add_flags, read_flags, shown
from training.experiments.record import Record

_CONNECTIONS = 32
_STORM_CONNECTIONS = 1024
_PROBE_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
_KEPT_AT_TWICE, _KEPT_IN_A_STORM, _LIVE_MILLISECONDS = 0.85, 0.7, 250.0
_GOOD = {"200", "503", "2xx", "5xx"}
"""As answers have to be; h2load counts classes, so the service's own counts are looked at too."""
_SERVER_ERROR = re.compile(
    r'^dropserve_requests_total\{.*status="(5\d\d)".*\} ([\d.e+]+)$', re.MULTILINE
)
_VARIANTS = {
    "1 worker": (),
    "2 workers": ("--workers", "2"),
    "1 worker, 2 threads": ("--threads", "2"),
}
_ON_ONE = "1 worker, 1 core"
_BOTH = "0,1"


@dataclass(frozen=True)
class Storm:
    """What came of clients that retry at once."""

    stretch: Stretch
    live_p99: float
    """Of /health/live meanwhile, milliseconds."""


@dataclass(frozen=True)
class Round:
    """One round at and around saturation."""

    saturation: float
    """Answers a second."""
    half: Arrivals
    evenly: Arrivals
    """The same, with equal gaps between requests."""
    twice: Paced
    storm: Storm

    @property
    def kept_at_twice(self) -> float:
        """Good answers at twice saturation to those at saturation."""
        return self.twice.rate / self.saturation

    @property
    def kept_in_the_storm(self) -> float:
        """Good answers in the storm to those at saturation."""
        return self.storm.stretch.rate / self.saturation


def main(arguments: list[str]) -> None:
    """Measure, print, record; status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each stretch of load")
    parser.add_argument("--both-cores", default=_BOTH, help="of two workers and wrk together")
    options = parser.parse_args(arguments)
    setup = read_flags(options)
    console = Console()
    bench = Bench(setup, setup.python(OURS, console.log), setup.scratch(), options.seconds)
    rounds = bench.around_saturation(options.rounds)
    rates = bench.on_both_cores(options.rounds, options.both_cores)
    about = f"{setup} OIP JSON; {options.rounds} rounds of {options.seconds:g} s, medians."
    records = [overload_record(rounds, about), scaling_record(rates, about, options.both_cores)]
    for record in reversed(records):
        record.print(console)
        if options.record:
            command = shlex.join(["python", "-m", "benchmarks.serving.overload", *shown(arguments)])
            record.add_to(options.record, command)
    sys.exit(0 if keeps_its_bars(rounds) else 1)


class Bench:
    """Starts our service and loads it."""

    def __init__(self, setup: Setup, python: Path, folder: Path, seconds: int) -> None:
        self._setup, self._python, self._folder, self._seconds = setup, python, folder, seconds
        self._content = open_inference(image_of(setup.bundle))

    def around_saturation(self, rounds: int) -> list[Round]:
        """Saturate one worker, then offer it half and twice of that."""
        found = []
        with ExitStack() as stack:
            cores = self._setup.server_cores
            with self._setup.turn():
                _, target = self._started(stack, "saturation", 0, cores, ())
            load = Load(self._setup.load_cores, self._new("load"))
            for number in range(rounds):
                with self._setup.turn():
                    load.closed(target, _CONNECTIONS, 1)
                    most = load.closed(target, _CONNECTIONS, self._seconds).rate
                    half, twice = round(most / 2, 1), round(2 * most, 1)
                    storm = self._storm(load, target)
                    at_half = load.open(target, half, self._seconds, seed=number)
                    evenly = load.open(target, half, self._seconds, seed=number, even=True)
                    at_twice = load.paced(target, twice, _STORM_CONNECTIONS, self._seconds)
                    at_twice.answers.update(server_errors(metrics_of(target)))
                found.append(Round(most, at_half, evenly, at_twice, storm))
        return found

    def _storm(self, load: Load, target: Target) -> Storm:
        """Let many connections retry at once, and ask for the health meanwhile."""
        seen = Seen()
        probe = Client(
            ("127.0.0.1", target.port),
            [request("GET", "/health/live", None, "Connection: close")],
            seen,
            keep_alive=False,
            every=_PROBE_SECONDS,
            timeout=_PATIENCE_SECONDS,
        )
        stretches: list[Stretch] = []

        async def happening() -> None:
            stretches.append(
                await asyncio.to_thread(load.closed, target, _STORM_CONNECTIONS, self._seconds)
            )

        asyncio.run(load_while([probe], happening))
        failed = seen.lost + seen.counts["late"] + seen.counts["refused"]
        waits = [*seen.latencies, *[_PATIENCE_SECONDS] * failed]
        return Storm(stretches[0], percentiles(waits)["p99"])

    def on_both_cores(self, rounds: int, cores: str) -> dict[str, list[float]]:
        """Let services with several workers and threads take turns; return answers a second."""
        shared = dict.fromkeys(_VARIANTS, cores) | {_ON_ONE: self._setup.server_cores}
        loads = {each: Load(each, self._new(f"load-{each}")) for each in {*shared.values()}}
        rates: dict[str, list[float]] = {title: [] for title in shared}
        with ExitStack() as stack:
            up = {}
            with self._setup.turn():
                for index, (title, its) in enumerate(shared.items(), start=1):
                    flags = _VARIANTS.get(title, ())
                    up[title] = self._started(stack, f"variant-{index}", index, its, flags)
                    up[title][0].hold()
            for _ in range(rounds):
                with self._setup.turn():
                    for title, (server, target) in up.items():
                        load = loads[shared[title]]
                        server.let_go()
                        load.closed(target, _CONNECTIONS, 1)
                        rates[title].append(load.closed(target, _CONNECTIONS, self._seconds).rate)
                        server.hold()
        return rates

    def _started(
        self, stack: ExitStack, name: str, index: int, cores: str, flags: Sequence[str]
    ) -> tuple[Server, Target]:
        setup = self._setup
        stage = Stage(self._python, setup.bundle, self._new(name), setup.first_port + index)
        path = f"/v2/models/{setup.bundle.manifest.name}/infer"
        target = Target(stage.port, path, self._content)
        server = stack.enter_context(Server(service(stage, *flags), cores, stage.folder))
        first_answer(server, target)
        return server, target

    def _new(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        return folder


def metrics_of(target: Target) -> str:
    """Return what the service counts, all of its time."""
    with urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=_PATIENCE_SECONDS) as answer:
        text: bytes = answer.read()
    return text.decode()


def server_errors(exposition: str) -> dict[str, int]:
    """Count the answers of each status from 500 that is not 503: there must be none."""
    found: Counter[str] = Counter()
    for status, count in _SERVER_ERROR.findall(exposition):
        if status != "503":
            found[status] += int(float(count))
    return dict(found)


def keeps_its_bars(rounds: Sequence[Round]) -> bool:
    """Whether the medians are as they have to be, and every answer is 200 or 503."""
    return (
        not set(_answers(rounds)) - _GOOD
        and not any(each.storm.stretch.lost for each in rounds)
        and median(each.kept_at_twice for each in rounds) >= _KEPT_AT_TWICE
        and median(each.kept_in_the_storm for each in rounds) >= _KEPT_IN_A_STORM
        and median(each.storm.live_p99 for each in rounds) <= _LIVE_MILLISECONDS
    )


def overload_record(rounds: Sequence[Round], about: str) -> Record:
    """Write down what happened at half and at twice saturation."""
    most = median(each.saturation for each in rounds)
    kept = [each.kept_at_twice for each in rounds]
    stormy = [each.kept_in_the_storm for each in rounds]
    live = [each.storm.live_p99 for each in rounds]
    shares = _answers(rounds)
    rows = [("saturation", f"{most:,.0f}", f"{most:,.0f}", "", "", "all 200")]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for title, stretches in (
        ("half", [each.half for each in rounds]),
        ("half, evenly", [each.evenly for each in rounds]),
    ):
        p50, p99 = (median(each.latencies[p] for each in stretches) for p in ("p50", "p99"))
        rows.append(
            (
                title,
                f"{median(each.rate for each in stretches):,.0f}",
                f"{median(each.good_rate for each in stretches):,.0f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                told(stretches),
            )
        )
        percentiles = list(stretches[0].latencies)
        values = [median(each.latencies[p] for each in stretches) for p in percentiles]
        axes.plot(percentiles, values, "o-", label=f"at {title} of saturation")
    axes.set(yscale="log", ylabel="latency of 200s, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    twice = [each.twice for each in rounds]
    rows.append(
        (
            "twice",
            f"{median(each.offered for each in twice):,.0f}",
            f"{median(each.rate for each in twice):,.0f}",
            "",
            "",
            told(twice),
        )
    )
    storms = [each.storm.stretch for each in rounds]
    refused, lost = sum(each.refused for each in storms), sum(each.lost for each in storms)
    rows.append(
        (
            f"storm of {_STORM_CONNECTIONS:,}",
            "",
            f"{median(each.rate for each in storms):,.0f}",
            f"{median(each.p50 for each in storms):.0f}",
            f"{median(each.p99 for each in storms):.0f}",
            f"refused: {refused:,}, lost: {lost:,}",
        )
    )
    odd = {status: count for status, count in shares.items() if status not in _GOOD}
    return Record(
        name="serving-overload",
        title="At half and at twice what the service can do",
        setting=f"{about} Latencies: milliseconds from when a request was due, of the answers 200.",
        columns=("load", "offered a second", "200s a second", "p50", "p99", "answers"),
        rows=rows,
        finding=f"At twice saturation the service still answers {100 * median(kept):.0f} % of its "
        f"most with 200 ({100 * min(kept):.0f} to {100 * max(kept):.0f} %), in the storm "
        f"{100 * median(stormy):.0f} % ({100 * min(stormy):.0f} to {100 * max(stormy):.0f} %), "
        f"with /health/live within {median(live):,.0f} ms in the 99th percentile. Answers that "
        f"were neither 200 nor 503: {odd or 'none'}.",
        figure=figure,
    )


def scaling_record(rates: dict[str, list[float]], about: str, cores: str) -> Record:
    """Write down what a second core is worth."""
    medians = {title: median(each) for title, each in rates.items()}
    one = medians["1 worker"]
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(medians), list(medians.values()))
    axes.invert_yaxis()
    axes.set_xlabel("answers a second")
    axes.grid(axis="x", alpha=0.3)
    workers, threads = medians["2 workers"], medians["1 worker, 2 threads"]
    return Record(
        name="serving-scaling",
        title="A second core for workers, or for threads",
        setting=f"{about} Here each service has the cores {cores}, but for {_ON_ONE!r}; wrk has "
        f"the same, with {_CONNECTIONS} connections.",
        columns=("service", "answers a second", "to 1 worker"),
        rows=[(title, f"{rate:,.0f}", f"{rate / one:.2f}") for title, rate in medians.items()],
        finding=f"Two workers answer {workers / one:.2f} times as much as one that has both cores, "
        f"{workers / medians[_ON_ONE]:.2f} times as much as one with one core, and "
        f"{workers / threads:.2f} times as much as one with two threads.",
        figure=figure,
    )


def told(stretches: Sequence[Arrivals | Paced]) -> str:
    """Say the share of each status: `200: 61.0 %, 503: 39.0 %`."""
    total = sum((Counter(each.answers) for each in stretches), Counter[str]())
    return ", ".join(
        f"{status}: {100 * count / total.total():.1f} %" for status, count in sorted(total.items())
    )


def _answers(rounds: Sequence[Round]) -> Counter[str]:
    stretches = [part for each in rounds for part in (each.half, each.evenly, each.twice)]
    return sum((Counter(each.answers) for each in stretches), Counter[str]())


if __name__ == "__main__":
    main(sys.argv[1:])
