"""Compare the speed of our service with other model servers, on one core each, in one run.

    python -m benchmarks.serving [--quick] [--peers ours,bare,triton] [--record docs]

All servers run the same `model.onnx` with one thread and are started once, each in its own
environment. In every round each is loaded in turn while the others are suspended (SIGSTOP). A
server whose probabilities differ from the model's is left out. wrk sends as fast as responses come;
`benchmarks.serving.open_loop` sends at rising rates. Read the ratios: they compare medians within
this run. Needs wrk, h2load and taskset.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

from rich.console import Console

from benchmarks.features import features
from benchmarks.serving.comparison import Plan, compare
from benchmarks.serving.peers import INT8, PEERS, Kind, Peer, other_checkout, with_feature
from benchmarks.serving.report import records
from benchmarks.serving.setup import add_flags, read_flags, recorded_flags
from model.bundle.store import open_bundle

_FULL = Plan(
    rounds=5,
    seconds=2,
    connections=(1, 8, 32, 128),
    rates=(50, 100, 200, 400, 800, 1600, 3200),
    kinds=get_args(Kind),
)
_QUICK = Plan(rounds=3, seconds=1, connections=(1, 32), rates=(), kinds=("OIP JSON", "OIP binary"))


def main(arguments: list[str]) -> None:
    """Measure, print the records, and add them to the notes with --record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--quick", action="store_true", help="three servers, a few short rounds")
    parser.add_argument("--peers", help="names with commas between; all if left out")
    parser.add_argument("--int8", type=Path, help="folder of a quantised bundle, for one line more")
    parser.add_argument(
        "--before", type=Path, help="another checkout of this project, to compare this one with"
    )
    parser.add_argument(
        "--features", help="our service with each of these, too: keys, log, feedback, ..."
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of each measurement")
    parser.add_argument("--connections", help="of the closed loop, with commas between, rising")
    parser.add_argument("--rates", help="of the open loop, requests a second, rising; or none")
    parser.add_argument("--kinds", help=f"of requests: {', '.join(get_args(Kind))}")
    options = parser.parse_args(arguments)
    plan = _plan(options)
    setup = read_flags(options)
    peers = [(peer, setup.bundle) for peer in _peers(options)]
    if options.int8:
        peers.insert(1, (INT8, open_bundle(options.int8)))
    if options.before:
        if not (options.before / "service").is_dir():
            parser.error(f"--before: {options.before} is no checkout of this project")
        peers.insert(1, (other_checkout(options.before), setup.bundle))
    folder = setup.scratch()
    peers[1:1] = [(peer, setup.bundle) for peer in _featured(options.features, folder)]
    console = Console()
    comparison = compare(peers, plan, setup, folder, console.log)
    if not comparison.servers:
        raise SystemExit("No server answered.")
    setting = f"{setup} Servers take turns; those that wait are suspended."
    command = shlex.join(["python", "-m", "benchmarks.serving", *recorded_flags(arguments)])
    for record in reversed(records(comparison, plan, setting)):
        record.print(console)
        if options.record:
            record.add_to(options.record, command)


def _plan(options: argparse.Namespace) -> Plan:
    defaults = _QUICK if options.quick else _FULL
    rates = defaults.rates if options.rates is None else _numbers(options.rates)
    return Plan(
        rounds=options.rounds or defaults.rounds,
        seconds=options.seconds or defaults.seconds,
        connections=tuple(map(int, _numbers(options.connections))) or defaults.connections,
        rates=rates,
        kinds=_kinds(options.kinds) or defaults.kinds,
    )


def _kinds(text: str | None) -> tuple[Kind, ...]:
    named = set(filter(None, (text or "").split(",")))
    if unknown := named - set(get_args(Kind)):
        raise SystemExit(
            f"--kinds: no {', '.join(sorted(unknown))}; there are {', '.join(get_args(Kind))}."
        )
    return tuple(each for each in get_args(Kind) if each in named)


def _numbers(text: str | None) -> tuple[float, ...]:
    return tuple(float(each) for each in (text or "").split(",") if each and each != "none")


def _featured(names: str | None, folder: Path) -> list[Peer]:
    if names is None:
        return []
    every = features(folder)
    if unknown := set(names.split(",")) - set(every):
        raise SystemExit(
            f"--features: no {', '.join(sorted(unknown))}; there are {', '.join(every)}."
        )
    return [with_feature(name, every[name]) for name in names.split(",")]


def _peers(options: argparse.Namespace) -> list[Peer]:
    if options.peers is None:
        return [each for each in PEERS if each.quick or not options.quick]
    by_name = {each.name: each for each in PEERS}
    names = options.peers.split(",")
    if unknown := set(names) - set(by_name):
        raise SystemExit(
            f"--peers: no {', '.join(sorted(unknown))}; there are {', '.join(by_name)}."
        )
    return [by_name[name] for name in names]


if __name__ == "__main__":
    main(sys.argv[1:])
