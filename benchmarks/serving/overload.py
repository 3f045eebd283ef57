"""Load our service at half and at twice saturation, with retrying clients, and on two cores.

    python -m benchmarks.serving.overload [--record docs]

Saturation is the rate of wrk with 32 connections, measured anew in each round. Half of it arrives
in an open loop, from a core of its own: at random, and with equal gaps too. (A server that takes
the same time for each request, one after another, has under random arrivals, at half of its
saturation, a p99 of 4.3 times its p50: M/D/1.) Twice the saturation is sent by h2load, over 1,024
connections at equal gaps. In the retry storm 1,024 clients retry at once. On two cores services
take turns, each round beginning with another: one worker, two workers, and one worker with two
threads, each with both cores, and one worker with one of them. wrk has the same cores as the
service, and so slows all of them down alike.
"""

import argparse
import asyncio
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reliability.clients import load_while
from benchmarks.reliability.health_probe import HealthProbe, ProbeStats
from benchmarks.serving.comparison import first_response, image_of, rotated
from benchmarks.serving.load import ClosedLoopResult, LoadGenerator, PacedResult, Target
from benchmarks.serving.open_loop import OpenLoopResult, late_note
from benchmarks.serving.payloads import open_inference
from benchmarks.serving.peers import OURS, LaunchSpec, service
from benchmarks.serving.servers import Server
from benchmarks.serving.setup import Setup, add_flags, read_flags, recorded_flags
from service.http.middleware import HUNG_UP_STATUS
from training.experiments.experiment_record import Record

_CONNECTIONS = 32
_STORM_CONNECTIONS = 1024
_TIMEOUT_SECONDS = 10.0
_KEPT_AT_TWICE, _KEPT_IN_A_STORM, _LIVE_MILLISECONDS = 0.85, 0.7, 250.0
_GOOD, _REFUSED = "200", "503"
_REQUESTS = re.compile(
    r'^dropserve_requests_total\{.*route="([^"]*)".*status="(\d+)".*\} ([\d.e+]+)$', re.MULTILINE
)
_OWN_ROUTES = {"/metrics", "/health/live"}
"""What the benchmark itself asks for beside the load."""
_VARIANTS = {
    "1 worker": (),
    "2 workers": ("--workers", "2"),
    "1 worker, 2 threads": ("--threads", "2"),
}
_ON_ONE = "1 worker, 1 core"
_BOTH = "0,1"


@dataclass(frozen=True)
class RetryStorm:
    """The measurements of a retry storm: many clients that retry at once."""

    result: ClosedLoopResult
    statuses: Counter[str]
    """How many responses of each status the service counts."""
    live_p99: float
    """99th percentile of the latency of /health/live during the storm, milliseconds."""


@dataclass(frozen=True)
class Round:
    """One round of measurements at saturation, below and above."""

    saturation: float
    """Responses per second."""
    half: OpenLoopResult
    evenly: OpenLoopResult
    """Half of saturation, with equal gaps between requests."""
    twice: PacedResult
    """With each status, which the service counts: h2load knows classes of them."""
    storm: RetryStorm

    @property
    def forbidden(self) -> Counter[str]:
        """The responses that must not be: below saturation all are 200, above it 200 or 503."""
        below = Counter(self.half.statuses) + Counter(self.evenly.statuses)
        above = Counter(self.twice.statuses) + self.storm.statuses
        found = Counter(lost=self.storm.result.lost)
        found += Counter({each: count for each, count in below.items() if each != _GOOD})
        allowed = {_GOOD, _REFUSED}
        return found + Counter({each: n for each, n in above.items() if each not in allowed})

    @property
    def kept_at_twice(self) -> float:
        """Responses with status 200 at twice saturation, as a share of those at saturation."""
        return self.twice.rate / self.saturation

    @property
    def kept_in_the_storm(self) -> float:
        """Responses with status 200 in the retry storm, as a share of those at saturation."""
        return self.storm.result.rate / self.saturation


def main(arguments: list[str]) -> None:
    """Measure, print, record; the exit status is 1 if a criterion is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--both-cores", default=_BOTH, help="of two workers and wrk together")
    options = parser.parse_args(arguments)
    setup = read_flags(options)
    console = Console()
    benchmark = OverloadBenchmark(
        setup, setup.python(OURS, console.log), setup.scratch(), options.seconds
    )
    rounds = benchmark.around_saturation(options.rounds)
    rates = benchmark.on_both_cores(options.rounds, options.both_cores)
    setting = f"{setup} OIP JSON; {options.rounds} rounds of {options.seconds:g} s, medians."
    records = [overload_record(rounds, setting), scaling_record(rates, setting, options.both_cores)]
    for record in reversed(records):
        record.print(console)
        if options.record:
            command = shlex.join(
                ["python", "-m", "benchmarks.serving.overload", *recorded_flags(arguments)]
            )
            record.add_to(options.record, command)
    sys.exit(0 if meets_criteria(rounds) else 1)


class OverloadBenchmark:
    """Starts our service and loads it."""

    def __init__(self, setup: Setup, python: Path, folder: Path, seconds: int) -> None:
        self._setup, self._python, self._folder, self._seconds = setup, python, folder, seconds
        self._content = open_inference(image_of(setup.bundle))

    def around_saturation(self, rounds: int) -> list[Round]:
        """Saturate one worker, then offer it half and twice of the saturation."""
        found = []
        with ExitStack() as stack:
            cores = self._setup.server_cores
            with self._setup.exclusive():
                _, target = self._start(stack, "saturation", 0, cores, ())
            load = LoadGenerator(self._setup.load_cores, self._new("load"))
            for number in range(rounds):
                with self._setup.exclusive():
                    load.closed_loop(target, _CONNECTIONS, 1)
                    most = load.closed_loop(target, _CONNECTIONS, self._seconds).rate
                    half, twice = round(most / 2, 1), round(2 * most, 1)
                    storm = self._retry_storm(load, target)
                    at_half = load.open_loop(target, half, self._seconds, seed=number)
                    evenly = load.open_loop(target, half, self._seconds, seed=number, even=True)
                    at_twice = self._at_twice(load, target, twice)
                found.append(Round(most, at_half, evenly, at_twice, storm))
        return found

    def _at_twice(self, load: LoadGenerator, target: Target, rate: float) -> PacedResult:
        """Offer more than is possible, and let the service itself count the statuses."""
        before = status_counts(metrics_of(target))
        result = load.paced(target, rate, _STORM_CONNECTIONS, self._seconds)
        counted = status_counts(metrics_of(target)) - before
        lost = {"lost": result.statuses["lost"]} if "lost" in result.statuses else {}
        return replace(result, statuses=counted | lost)

    def _retry_storm(self, load: LoadGenerator, target: Target) -> RetryStorm:
        """Let many connections retry at once, and probe /health/live meanwhile."""
        stats = ProbeStats()
        probe = HealthProbe(("127.0.0.1", target.port), stats, timeout=_TIMEOUT_SECONDS)
        before = status_counts(metrics_of(target))
        results: list[ClosedLoopResult] = []

        async def action() -> None:
            results.append(
                await asyncio.to_thread(load.closed_loop, target, _STORM_CONNECTIONS, self._seconds)
            )

        asyncio.run(load_while([probe], action))
        statuses = status_counts(metrics_of(target)) - before
        return RetryStorm(results[0], statuses, stats.p99)

    def on_both_cores(self, rounds: int, cores: str) -> dict[str, list[float]]:
        """Let services with several workers and threads take turns; return responses per second."""
        shared = dict.fromkeys(_VARIANTS, cores) | {_ON_ONE: self._setup.server_cores}
        loads = {
            each: LoadGenerator(each, self._new(f"load-{each}")) for each in {*shared.values()}
        }
        rates: dict[str, list[float]] = {title: [] for title in shared}
        with ExitStack() as stack:
            running = {}
            with self._setup.exclusive():
                for index, (title, service_cores) in enumerate(shared.items(), start=1):
                    flags = _VARIANTS.get(title, ())
                    running[title] = self._start(
                        stack, f"variant-{index}", index, service_cores, flags
                    )
                    running[title][0].suspend()
            for number in range(rounds):
                with self._setup.exclusive():
                    for title in rotated(list(running), number):
                        server, target = running[title]
                        load = loads[shared[title]]
                        server.resume()
                        load.closed_loop(target, _CONNECTIONS, 1)
                        server.wait_until_idle()
                        rates[title].append(
                            load.closed_loop(target, _CONNECTIONS, self._seconds).rate
                        )
                        server.suspend()
        return rates

    def _start(
        self, stack: ExitStack, name: str, index: int, cores: str, flags: Sequence[str]
    ) -> tuple[Server, Target]:
        setup = self._setup
        spec = LaunchSpec(self._python, setup.bundle, self._new(name), setup.first_port + index)
        path = f"/v2/models/{setup.bundle.manifest.name}/infer"
        target = Target(spec.port, path, self._content)
        server = stack.enter_context(Server(service(spec, *flags), cores, spec.folder))
        first_response(server, target)
        return server, target

    def _new(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        return folder


def metrics_of(target: Target) -> str:
    """Return the text of the service's /metrics."""
    with urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=_TIMEOUT_SECONDS) as response:
        text: bytes = response.read()
    return text.decode()


def status_counts(exposition: str) -> Counter[str]:
    """Count the responses of each status since the start of the service.

    Clients that hung up, as those of a load generator do at its end, got none.
    """
    found: Counter[str] = Counter()
    for route, status, count in _REQUESTS.findall(exposition):
        if route not in _OWN_ROUTES and status != f"{HUNG_UP_STATUS}":
            found[status] += int(float(count))
    return found


def meets_criteria(rounds: Sequence[Round]) -> bool:
    """Whether the medians meet their limits, and every response has an allowed status."""
    return (
        not _forbidden(rounds)
        and median(each.kept_at_twice for each in rounds) >= _KEPT_AT_TWICE
        and median(each.kept_in_the_storm for each in rounds) >= _KEPT_IN_A_STORM
        and median(each.storm.live_p99 for each in rounds) <= _LIVE_MILLISECONDS
    )


def overload_record(rounds: Sequence[Round], setting: str) -> Record:
    """Return the record of half and twice saturation."""
    kept = [each.kept_at_twice for each in rounds]
    kept_in_storm = [each.kept_in_the_storm for each in rounds]
    live = [each.storm.live_p99 for each in rounds]
    return Record(
        name="serving-overload",
        title="At half and at twice saturation",
        setting=f"{setting} Latencies: milliseconds from when a request was due, for status 200; a "
        "request without a response counts until it was given up.",
        columns=("load", "offered a second", "200s a second", "p50", "p99", "responses"),
        rows=_overload_rows(rounds),
        finding=f"At twice saturation the service still answers {100 * median(kept):.0f} % of its "
        f"most with 200 {_range(kept)}, in the retry storm {100 * median(kept_in_storm):.0f} % "
        f"{_range(kept_in_storm)}, with /health/live within {median(live):,.0f} ms in the 99th "
        "percentile. Responses "
        "other than 200 at half, and other than 200 and 503 above saturation: "
        f"{dict(_forbidden(rounds)) or 'none'}.",
        figure=_overload_figure(rounds),
    )


def _range(shares: Sequence[float]) -> str:
    return f"({100 * min(shares):.0f} to {100 * max(shares):.0f} %)"


def _half_results(rounds: Sequence[Round]) -> dict[str, list[OpenLoopResult]]:
    return {
        "half": [each.half for each in rounds],
        "half, evenly": [each.evenly for each in rounds],
    }


def _overload_rows(rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    most = median(each.saturation for each in rounds)
    rows: list[tuple[str, ...]] = [
        ("saturation", f"{most:,.0f}", f"{most:,.0f}", "", "", "all 200")
    ]
    for title, results in _half_results(rounds).items():
        p50, p99 = (median(each.latencies[p] for each in results) for p in ("p50", "p99"))
        rows.append(
            (
                title,
                f"{median(each.rate for each in results):,.0f}",
                f"{median(each.good_rate for each in results):,.0f}",
                f"{p50:.2f}",
                f"{p99:.2f}{late_note(results)}",
                status_shares(results),
            )
        )
    twice = [each.twice for each in rounds]
    rows.append(
        (
            "twice",
            f"{median(each.offered for each in twice):,.0f}",
            f"{median(each.rate for each in twice):,.0f}",
            "",
            "",
            status_shares(twice),
        )
    )
    storms = [each.storm.result for each in rounds]
    lost = sum(each.lost for each in storms)
    rows.append(
        (
            f"storm of {_STORM_CONNECTIONS:,}",
            "",
            f"{median(each.rate for each in storms):,.0f}",
            f"{median(each.p50 for each in storms):.0f}",
            f"{median(each.p99 for each in storms):.0f}",
            f"{status_shares([each.storm for each in rounds])}, lost: {lost:,}",
        )
    )
    return rows


def _overload_figure(rounds: Sequence[Round]) -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for title, results in _half_results(rounds).items():
        names = list(results[0].latencies)
        values = [median(each.latencies[name] for each in results) for name in names]
        axes.plot(names, values, "o-", label=f"at {title} of saturation")
    axes.set(yscale="log", ylabel="latency of 200s, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def scaling_record(rates: dict[str, list[float]], setting: str, cores: str) -> Record:
    """Return the record of the gain by a second core."""
    medians = {title: median(each) for title, each in rates.items()}
    one = medians["1 worker"]
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(medians), list(medians.values()))
    axes.invert_yaxis()
    axes.set_xlabel("responses per second")
    axes.grid(axis="x", alpha=0.3)
    workers, threads = medians["2 workers"], medians["1 worker, 2 threads"]
    return Record(
        name="serving-scaling",
        title="A second core for workers, or for threads",
        setting=f"{setting} Here each service has the cores {cores}, but for {_ON_ONE!r}; wrk has "
        f"the same, with {_CONNECTIONS} connections.",
        columns=("service", "responses per second", "to 1 worker"),
        rows=[(title, f"{rate:,.0f}", f"{rate / one:.2f}") for title, rate in medians.items()],
        finding=f"Two workers answer {workers / one:.2f} times as much as one that has both cores, "
        f"{workers / medians[_ON_ONE]:.2f} times as much as one with one core, and "
        f"{workers / threads:.2f} times as much as one with two threads.",
        figure=figure,
    )


def status_shares(results: Sequence[OpenLoopResult | PacedResult | RetryStorm]) -> str:
    """Format the share of each status: `200: 61.0 %, 503: 39.0 %`."""
    total = sum((Counter(each.statuses) for each in results), Counter[str]())
    return ", ".join(
        f"{status}: {100 * count / total.total():.1f} %" for status, count in sorted(total.items())
    )


def _forbidden(rounds: Sequence[Round]) -> Counter[str]:
    return sum((each.forbidden for each in rounds), Counter[str]())


if __name__ == "__main__":
    main(sys.argv[1:])
