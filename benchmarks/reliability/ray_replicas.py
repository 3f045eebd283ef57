"""Replicas of Ray Serve on two nodes: their answers, and what kills and rollouts cost.

    python -m benchmarks.reliability.ray_replicas [--quick] [--record]

Two nodes of a Ray cluster on this machine, each with one replica, behind Serve's proxy on the first
node, which needs an environment with Ray (`make .venv-ray`). 1,000 requests of every kind are
answered as one server answers them. Then, under load, replicas are killed, nodes are killed with
all of their processes, and versions are rolled out by the shared control folder; in a cluster of
its own, Serve's autoscaling adds a replica and takes it away. Every answer of status 200 has to be
the right one, and every other one 503.
"""

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.reliability.checked_clients import (
    WRONG,
    CheckedClient,
    CheckedStats,
    requests_of_random_images,
    right_answers,
)
from benchmarks.reliability.clients import REFUSED, ClientStats, load_while
from benchmarks.reliability.equal_answers import differences, requests_of_every_kind
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.ray_cluster import RayCluster
from benchmarks.reliability.replica_load import describe
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.rollout_commands import (
    SHARE,
    Commands,
    outputs_of_both_versions,
    train_second_version,
)
from benchmarks.reliability.services import Service
from benchmarks.reliability.version_watch import (
    VersionClient,
    VersionStats,
    messages_with_ids,
    stale_answers,
)
from benchmarks.reliability.wire import Address
from benchmarks.serving.environments import ROOT

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
NODES = 2
_REQUESTS, _QUICK_REQUESTS = 1000, 200
_KILLS, _QUICK_KILLS = 5, 1
_NODE_KILLS, _QUICK_NODE_KILLS = 3, 1
_ROUNDS, _QUICK_ROUNDS = 10, 2
_MESSAGES = 16
_IMAGES = 8
_CLIENTS, _EVERY = 4, 0.1
_SETTLE_SECONDS = 1.0
_AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": NODES,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 1,
    "downscale_delay_s": 5,
    "look_back_period_s": 2,
}


def measure(options: Options) -> Report:
    """Start one server and a cluster, compare them and disturb the cluster, then scale another."""
    if not PYTHON.exists():
        raise SystemExit("There is no environment with Ray; make it with `make .venv-ray`.")
    models = options.folder("models")
    shutil.copytree(options.models_folder / "digits" / "1", models / "digits" / "1")
    report = _Report([], [], [])
    with Service(options.folder("one"), models, options.port, "--models", "digits@1") as one:
        address = one.address
        options.log("starting a cluster")
        with two_replicas(PYTHON, options.folder("ray"), options.port + 1, models) as cluster:
            cluster.wait_until_ready(NODES)
            _compare(options, report, address, cluster)
            _kill(options, report, address, cluster)
            _roll_out(options, report, cluster, models)
        _scale(options, report, address, models)
    return Report(
        title="Replicas of Ray Serve",
        setting=f"{NODES} nodes of a Ray cluster on this machine, a replica on each, Serve's proxy "
        f"on the first; {_CLIENTS} clients that each send every {1000 * _EVERY:.0f} ms, or at once "
        f"for autoscaling; {options}.",
        columns=("what was done", "times", "requests", "outcomes"),
        rows=report.rows,
        criteria=report.criteria,
        notes=report.notes,
    )


@dataclass(frozen=True)
class _Report:
    """The parts of a report that grow."""

    rows: list[tuple[str, ...]]
    criteria: list[Criterion]
    notes: list[str]

    def add_row(self, title: str, times: int, stats: ClientStats) -> None:
        counts = Counter({name: n for name, n in stats.counts.items() if name != "sent"})
        self.rows.append((title, f"{times}", f"{stats.counts['sent']:,}", describe(counts)))

    def require_none(self, name: str, count: int) -> None:
        self.criteria.append(Criterion(name, f"{count}", "0", count == 0))


def _compare(options: Options, report: _Report, one: Address, cluster: RayCluster) -> None:
    requests = _QUICK_REQUESTS if options.quick else _REQUESTS
    options.log(f"comparing {requests} answers")
    different = differences(one, cluster.address, requests_of_every_kind(requests))
    report.require_none(f"answers of {requests:,} that are not those of one server", len(different))
    report.notes.extend(different[:3])


def _kill(options: Options, report: _Report, one: Address, cluster: RayCluster) -> None:
    outcomes = Counter[str]()
    for title, count, kill in (
        ("SIGKILL to a replica", _QUICK_KILLS if options.quick else _KILLS, kill_replica),
        ("SIGKILL to a node", _QUICK_NODE_KILLS if options.quick else _NODE_KILLS, kill_node),
    ):
        options.log(f"{count} times: {title}")
        stats = asyncio.run(send_while(one, cluster, kill, count))
        outcomes += stats.counts
        report.add_row(title, count, stats)
    report.require_none("wrong answers around kills", outcomes[WRONG])
    report.require_none(
        "requests around kills with neither an answer nor 503", unexplained(outcomes)
    )


def _roll_out(options: Options, report: _Report, cluster: RayCluster, models: Path) -> None:
    options.log("training another version")
    train_second_version(models, options.folder("training"))
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    options.log(f"{rounds} rollouts")
    commands, stats = Commands([cluster.address]), VersionStats()
    asyncio.run(roll_out_under_load(cluster.address, commands, stats, rounds))
    report.add_row("canary, promote, rollback", rounds, stats)
    report.require_none("requests during rollouts without a good answer", _failed(stats))
    report.require_none("answers that are not those of the version they name", stats.wrong)
    stale = stale_answers(stats.answers, commands.history)
    report.require_none("answers of a version that did not serve any more, or not yet", len(stale))
    report.require_none("commands that failed", len(commands.refusals))
    slowest = max(max(commands.seconds[name]) for name in ("promote", "rollback"))
    report.notes.append(f"Slowest promote or rollback: {slowest:.2f} s.")
    report.notes.extend(commands.refusals[:3])


def _scale(options: Options, report: _Report, one: Address, models: Path) -> None:
    """Have Serve add a replica under load, and take one away when there is little."""
    folder, deployment = options.folder("autoscaling"), {"autoscaling_config": _AUTOSCALING}
    options.log("starting a cluster that scales")
    pinned = _arguments(folder, models) | {"models": "digits@1"}
    with RayCluster(PYTHON, folder, options.port + 2, NODES, pinned, deployment) as cluster:
        cluster.wait_until_ready(1)
        options.log("a replica more, a replica less")
        more = asyncio.run(send_while(one, cluster, partial(_await_replicas, NODES), every=0))
        fewer = asyncio.run(send_while(one, cluster, partial(_await_replicas, 1), clients=1))
    report.add_row(f"autoscaling from 1 to {NODES} replicas", 1, more)
    report.add_row(f"autoscaling from {NODES} to 1", 1, fewer)
    report.require_none("requests that autoscaling lost", _failed(more) + _failed(fewer))


async def _await_replicas(count: int, cluster: RayCluster) -> None:
    await asyncio.to_thread(cluster.wait_until_ready, count)


def two_replicas(python: Path, folder: Path, port: int, models: Path) -> RayCluster:
    """Start a cluster of two nodes, each with a replica, which share their rollouts.

    python: of an environment with Ray.
    folder: empty; gets the log and the rollouts.
    """
    arguments = _arguments(folder, models)
    return RayCluster(python, folder, port, NODES, arguments, {"num_replicas": NODES})


def _arguments(folder: Path, models: Path) -> dict[str, object]:
    """Return the settings of replicas that share their rollouts in a new folder."""
    shared = folder / "shared"
    shared.mkdir()
    return {
        "models_folder": str(models),
        "control_folder": str(shared),
        "control": "anyone",
        "watch_seconds": 0,  # a version that is published later serves when it is told to
    }


async def send_while(
    one: Address,
    cluster: RayCluster,
    disturb: Callable[[RayCluster], Awaitable[None]],
    count: int = 1,
    clients: int = _CLIENTS,
    every: float = _EVERY,
) -> CheckedStats:
    """Disturb the cluster again and again while clients send; return what they got.

    one: a server whose answers are the right ones.
    every: seconds from one request of a client to its next; 0: at once.
    """
    answers = await right_answers([one, cluster.address], requests_of_random_images(_MESSAGES))
    stats = CheckedStats()

    async def act() -> None:
        for _ in range(count):
            await asyncio.sleep(_SETTLE_SECONDS)
            await disturb(cluster)
        await asyncio.sleep(_SETTLE_SECONDS)

    sending = [CheckedClient(cluster.address, answers, stats, every=every) for _ in range(clients)]
    await load_while(sending, act)
    return stats


async def kill_replica(cluster: RayCluster) -> None:
    """Kill a replica, and wait until Serve has replaced it."""
    cluster.kill_replica()
    await asyncio.to_thread(cluster.wait_until_ready, NODES)


async def kill_node(cluster: RayCluster) -> None:
    """Kill a node; while the other one answers, add a new node and wait until it serves."""
    cluster.kill_node()
    await asyncio.sleep(_SETTLE_SECONDS)
    cluster.add_node()
    await asyncio.to_thread(cluster.wait_until_ready, NODES)


async def roll_out_under_load(
    address: Address, commands: Commands, stats: VersionStats, rounds: int
) -> None:
    """Try a canary, promote it and roll back, again and again, while clients send."""
    messages = messages_with_ids(_IMAGES)
    right = await outputs_of_both_versions(commands, NODES * 2 * [address], messages[:_IMAGES])

    async def change() -> None:
        for _ in range(rounds):
            await commands.serve(f"canary?version=2&share={SHARE}", "1", "2")
            await commands.settle()
            await commands.serve("promote", "2")
            await commands.settle()
            await commands.serve("rollback", "1")
            await commands.settle()

    clients = [VersionClient(address, messages, right, stats, _EVERY) for _ in range(_CLIENTS)]
    await load_while(clients, change)


def unexplained(counts: Counter[str]) -> int:
    """Return how many requests got neither an answer nor 503."""
    return sum(n for name, n in counts.items() if name not in {"200", "503", REFUSED, "sent"})


def _failed(stats: ClientStats) -> int:
    return stats.counts["sent"] - stats.good


if __name__ == "__main__":
    sys.exit(run("ray_replicas", __doc__, measure, sys.argv[1:], first_port=8840))
