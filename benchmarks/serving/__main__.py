"""How fast ours answers beside other model servers, on one core each, in one run.

    python -m benchmarks.serving [--quick] [--peers ours,bare,triton] [--record docs]

All servers run the same `model.onnx` with one thread and are brought up once, each in its own
environment. In every round each answers in turn while the others are held still (SIGSTOP). A server
whose probabilities are not the model's own is left out. wrk sends from so many connections as fast
as answers come; `benchmarks.serving.open_loop` sends at rising rates. Read the ratios: they are of
medians within this run. Needs wrk and taskset.
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path
from typing import get_args

from rich.console import Console

from benchmarks.serving.comparison import Plan, Setup, compare
from benchmarks.serving.environments import ROOT
from benchmarks.serving.peers import INT8, PEERS, Kind, Peer
from benchmarks.serving.report import machine, records
from model.bundle import Bundle, open_bundle

_FULL = Plan(
    rounds=5,
    seconds=2,
    connections=(1, 8, 32, 128),
    rates=(50, 100, 200, 400, 800, 1600, 3200),
    kinds=get_args(Kind),
)
_QUICK = Plan(rounds=3, seconds=2, connections=(1, 32), rates=(), kinds=("OIP JSON", "OIP binary"))
_BUNDLES = (ROOT / "models" / "fashion-mnist" / "1", ROOT / "models" / "digits" / "1")


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_setup(parser)
    parser.add_argument("--quick", action="store_true", help="three servers, a few short rounds")
    parser.add_argument("--peers", help="names with commas between; all if left out")
    parser.add_argument("--int8", type=Path, help="folder of a quantised bundle, for one line more")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each stretch of load")
    parser.add_argument("--connections", help="of the closed loop, with commas between, rising")
    parser.add_argument("--rates", help="of the open loop, requests a second, rising; or none")
    parser.add_argument("--kinds", help=f"of requests: {', '.join(get_args(Kind))}")
    options = parser.parse_args(arguments)
    plan = _plan(options)
    setup = read_setup(options)
    peers = [(peer, setup.bundle) for peer in _peers(options)]
    if options.int8:
        peers.insert(1, (INT8, open_bundle(options.int8)))
    console = Console()
    comparison = compare(peers, plan, setup, scratch(setup), console.log)
    if not comparison.subjects:
        raise SystemExit("No server answered.")
    setting = f"{describe(setup)} Servers take turns; those that wait are held still."
    command = " ".join(["python -m benchmarks.serving", *_shown(arguments)])
    for record in reversed(records(comparison, plan, setting)):
        record.print(console)
        if options.record:
            record.add_to(options.record, command)


def add_setup(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where things run."""
    parser.add_argument("--bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--server-cores", default="0", help="as taskset -c takes them")
    parser.add_argument("--load-cores", default="1", help="as taskset -c takes them")
    parser.add_argument(
        "--port", type=int, default=8300, help="the first of a port for each server"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a server's environment by its Python, instead of one that is made; may be repeated",
    )
    parser.add_argument("--package-index", default="", help="another one beside the default")
    parser.add_argument(
        "--lock", type=Path, help="a file to lock while measuring, as others here do too"
    )
    parser.add_argument("--record", type=Path, help="folder of the notes")


def read_setup(options: argparse.Namespace) -> Setup:
    """Return what those flags say; SIGTERM ends as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return Setup(
        bundle=_bundle(options.bundle),
        server_cores=options.server_cores,
        load_cores=options.load_cores,
        first_port=options.port,
        pythons={
            name: Path(path) for name, _, path in (each.partition("=") for each in options.python)
        },
        package_index=options.package_index,
        lock=options.lock,
    )


def scratch(setup: Setup) -> Path:
    """Return an empty folder, where the servers' logs remain until the next run."""
    folder = ROOT / "build" / f"serving-{setup.first_port}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def describe(setup: Setup) -> str:
    """Say what is served, and on what."""
    manifest = setup.bundle.manifest
    return (
        f"{manifest.name} version {manifest.version}, ONNX Runtime on one thread; the server on "
        f"core {setup.server_cores}, the load on core {setup.load_cores}; {machine()}."
    )


def _bundle(path: Path | None) -> Bundle:
    found = path or next((each for each in _BUNDLES if each.exists()), None)
    if found is None:
        raise SystemExit("There is no bundle; make one with `make train`, or name one: --bundle.")
    return open_bundle(found)


def _plan(options: argparse.Namespace) -> Plan:
    usual = _QUICK if options.quick else _FULL
    rates = usual.rates if options.rates is None else _numbers(options.rates)
    return Plan(
        rounds=options.rounds or usual.rounds,
        seconds=options.seconds or usual.seconds,
        connections=tuple(map(int, _numbers(options.connections))) or usual.connections,
        rates=rates,
        kinds=tuple(each for each in usual.kinds if each in (options.kinds or each).split(",")),
    )


def _numbers(text: str | None) -> tuple[float, ...]:
    return tuple(float(each) for each in (text or "").split(",") if each and each != "none")


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


def _shown(arguments: list[str]) -> list[str]:
    """The flags that say what was measured, without those that say where things lie."""
    private = ("--python", "--lock", "--record", "--package-index", "--port")
    shown, skip = [], False
    for each in arguments:
        if not skip and not each.startswith(private):
            shown.append(each)
        skip = each in private
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
