"""Replicas of Ray Serve on two nodes: their answers, and what kills and rollouts cost.

    python -m benchmarks.reliability.ray_replicas [--quick] [--record]

Two nodes of a Ray cluster on this machine, each with one replica, behind Serve's proxy on the first
node, which needs an environment with Ray (`make .venv-ray`). 1,000 requests of every kind are
answered as one server answers them. Then, under load, replicas are killed, nodes are killed with
all of their processes, and versions are rolled out by the shared control folder. Every answer of
status 200 has to be the right one, and every other one 503.
"""

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.reliability.checked_clients import (
    WRONG,
    CheckedClient,
    CheckedStats,
    requests_of_random_images,
    right_answers,
)
from benchmarks.reliability.clients import REFUSED, load_while
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
_KILLS, _QUICK_KILLS = 20, 2
_NODE_KILLS, _QUICK_NODE_KILLS = 5, 1
_ROUNDS, _QUICK_ROUNDS = 20, 3
_MESSAGES = 16
_IMAGES = 8
_CLIENTS, _EVERY = 8, 0.05
_SETTLE_SECONDS = 1.0


def measure(options: Options) -> Report:
    """Start one server and the cluster, compare them, and disturb the cluster."""
    if not PYTHON.exists():
        raise SystemExit("There is no environment with Ray; make it with `make .venv-ray`.")
    models = options.folder("models")
    shutil.copytree(options.models_folder / "digits" / "1", models / "digits" / "1")
    port = options.port
    with (
        Service(options.folder("one"), models, port, "--models", "digits@1") as one,
        two_replicas(PYTHON, options.folder("ray"), port + 1, models) as cluster,
    ):
        options.log("starting the cluster")
        cluster.wait_until_ready(NODES)
        return _measure(options, one.address, cluster, models)


def two_replicas(python: Path, folder: Path, port: int, models: Path) -> RayCluster:
    """Start a cluster of two nodes, each with a replica, which share their rollouts.

    python: of an environment with Ray.
    folder: empty; gets the log and the rollouts.
    """
    shared = folder / "shared"
    shared.mkdir()
    arguments = {
        "models_folder": str(models),
        "control_folder": str(shared),
        "control": "anyone",
        "watch_seconds": 0,  # a version that is published later serves when it is told to
    }
    return RayCluster(python, folder, port, NODES, arguments, {"num_replicas": NODES})


def _measure(options: Options, one: Address, cluster: RayCluster, models: Path) -> Report:
    quick = options.quick
    requests = _QUICK_REQUESTS if quick else _REQUESTS
    options.log(f"comparing {requests} answers")
    different = differences(one, cluster.address, requests_of_every_kind(requests))
    rows, outcomes = [], Counter[str]()
    for title, count, kill in (
        ("SIGKILL to a replica", _QUICK_KILLS if quick else _KILLS, kill_replica),
        ("SIGKILL to a node", _QUICK_NODE_KILLS if quick else _NODE_KILLS, kill_node),
    ):
        options.log(f"{count} times: {title}")
        stats = asyncio.run(kill_under_load(one, cluster, kill, count))
        outcomes += stats.counts
        rows.append((title, f"{count}", f"{stats.counts['sent']:,}", _outcomes(stats)))
    options.log("training another version")
    train_second_version(models, options.folder("training"))
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    options.log(f"{rounds} rollouts")
    commands, versions = Commands([cluster.address]), VersionStats()
    asyncio.run(roll_out_under_load(cluster.address, commands, versions, rounds))
    rows.append(
        (
            "canary, promote, rollback",
            f"{rounds}",
            f"{versions.counts['sent']:,}",
            _outcomes(versions),
        )
    )
    stale = stale_answers(versions.answers, commands.history)
    slowest = max(max(commands.seconds[name]) for name in ("promote", "rollback"))
    return Report(
        title="Replicas of Ray Serve",
        setting=f"{NODES} nodes of a Ray cluster on this machine, a replica on each, Serve's proxy "
        f"on the first; {_CLIENTS} clients that each send every {1000 * _EVERY:.0f} ms; {options}.",
        columns=("what was done", "times", "requests", "outcomes"),
        rows=rows,
        criteria=[
            _none(f"answers of {requests:,} that are not those of one server", len(different)),
            _none("wrong answers around kills", outcomes[WRONG]),
            _none("requests around kills with neither an answer nor 503", unexplained(outcomes)),
            _none("requests during rollouts without a good answer", _failed(versions)),
            _none("answers that are not those of the version they name", versions.wrong),
            _none("answers of a version that did not serve any more, or not yet", len(stale)),
            _none("commands that failed", len(commands.refusals)),
        ],
        notes=[
            f"Slowest promote or rollback: {slowest:.2f} s.",
            *different[:3],
            *commands.refusals,
        ],
    )


async def kill_under_load(
    one: Address,
    cluster: RayCluster,
    kill: Callable[[RayCluster], Awaitable[None]],
    count: int,
) -> CheckedStats:
    """Kill again and again while clients send; return what they got.

    one: a server whose answers are the right ones.
    """
    answers = await right_answers([one, cluster.address], requests_of_random_images(_MESSAGES))
    stats = CheckedStats()

    async def disturb() -> None:
        for _ in range(count):
            await asyncio.sleep(_SETTLE_SECONDS)
            await kill(cluster)
        await asyncio.sleep(_SETTLE_SECONDS)

    clients = [
        CheckedClient(cluster.address, answers, stats, every=_EVERY) for _ in range(_CLIENTS)
    ]
    await load_while(clients, disturb)
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


def _failed(stats: VersionStats) -> int:
    return stats.counts["sent"] - stats.good


def _outcomes(stats: CheckedStats | VersionStats) -> str:
    return describe(Counter({name: n for name, n in stats.counts.items() if name != "sent"}))


def _none(name: str, count: int) -> Criterion:
    return Criterion(name, f"{count}", "0", count == 0)


if __name__ == "__main__":
    sys.exit(run("ray_replicas", __doc__, measure, sys.argv[1:], first_port=8840))
