"""Promote and roll back over three replicas on hosts of their own, under load.

    python -m benchmarks.reliability.shared_rollouts [--quick] [--record]

Three replicas share a control folder and nothing else (see `isolated_replicas`, which needs root).
100 times (`--quick`: 5) a canary is started, promoted and rolled back, each time by another
replica, while clients send to all three, and while another replica pins a version of a second
model. Every answer has to be that of the version that it names, and the version one that served
between the request's beginning and its end: before a command is sent the old one, after its answer
the new one, on every replica; while a canary is tried, the one that the hash of the request id
says. Then a replica is killed, 3 times (1), and the commands go on; it comes back with what is
wanted. The second version is trained first, from another seed.
"""

import asyncio
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from benchmarks.reliability.clients import load_while
from benchmarks.reliability.isolated_replicas import ISOLATION, IsolatedReplicas, IsolationError
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.rollout_commands import (
    SHARE,
    Commands,
    exchange_or_exit,
    outputs_of_both_versions,
    train_second_version,
)
from benchmarks.reliability.version_watch import (
    Message,
    Serving,
    VersionClient,
    VersionStats,
    messages_with_ids,
    stale_answers,
    version_and_outputs,
)

_REPLICAS = 3
_ROUNDS, _QUICK_ROUNDS = 100, 5
_KILLS, _QUICK_KILLS = 3, 1
_CLIENTS, _EVERY = 12, 0.02
_IMAGES = 8
_LIMIT_SECONDS = 2.0
_GONE_SECONDS = 15.0
"""How long a command may wait for a replica that was killed: it is silent for 10 s first."""
_TABLE_NOTE = (
    "A canary takes as long as the slowest replica loads the version. The pins are those of the "
    "second model, which loads a version as well."
)
_FLAGS = ("--control", "anyone", "--no-auth", "--log-level", "warning", "--default-model", "digits")


def measure(options: Options) -> Report:
    """Train, start the replicas, change what serves, and check every answer."""
    models, shared = _prepare(options), options.folder("shared")
    flags = (*_FLAGS, "--control-folder", str(shared))
    messages, stats = messages_with_ids(_IMAGES), VersionStats()
    try:
        with IsolatedReplicas(options, models, _REPLICAS, *flags) as replicas:
            commands = Commands(replicas.addresses)
            asyncio.run(_roll_out(options, replicas, commands, messages, stats))
            kills = Commands(replicas.addresses)
            after = _kill(options, replicas, kills, messages)
    except IsolationError as error:
        raise SystemExit(f"The replicas cannot be kept apart: {error}.") from None
    generation = orjson.loads((shared / "releases.json").read_bytes())["generation"]
    changes = commands.answered + kills.answered
    stale = stale_answers(stats.answers, commands.history)
    others = stats.counts["sent"] - stats.good
    slowest = max(max(commands.seconds[name]) for name in ("promote", "rollback"))
    refusals = [*commands.refusals, *kills.refusals]
    gone = max(kills.seconds["promote"])
    return Report(
        title="Rollouts over replicas on several hosts",
        setting=f"{_REPLICAS} replicas, default settings; {ISOLATION}; {_CLIENTS} clients that "
        f"each send every {1000 * _EVERY:.0f} ms; {options}.",
        columns=("command", "times", "median, s", "99th percentile, s", "slowest, s"),
        rows=[_row(name, each) for name, each in commands.seconds.items()],
        criteria=[
            Criterion(
                "a promote or rollback has reached every replica, slowest",
                f"{slowest:.2f} s",
                f"{_LIMIT_SECONDS:g} s",
                slowest <= _LIMIT_SECONDS,
            ),
            _none("answers that are not those of the version they name", stats.wrong),
            _none("answers of a version that did not serve any more, or not yet", len(stale)),
            _none("requests without a good answer", others),
            _none("commands that failed", len(refusals)),
            _none("changes that were lost", changes - generation),
            Criterion(
                "a command beside a killed replica, slowest",
                f"{gone:.1f} s",
                f"{_GONE_SECONDS:g} s",
                gone <= _GONE_SECONDS,
            ),
            _none("answers of a restarted replica by another version than the wanted one", after),
        ],
        notes=[
            _TABLE_NOTE,
            _overlap_note(stats, commands.history),
            *refusals[:3],
        ],
    )


def _prepare(options: Options) -> Path:
    """Return a models folder with two versions of digits that differ, and two of letters."""
    models = options.folder("models")
    shutil.copytree(options.models_folder / "digits" / "1", models / "digits" / "1")
    options.log("training another version")
    train_second_version(models, options.folder("training"))
    shutil.copytree(models / "digits", models / "letters")
    for manifest in (models / "letters").glob("*/manifest.json"):
        manifest.write_bytes(
            orjson.dumps(orjson.loads(manifest.read_bytes()) | {"name": "letters"})
        )
    return models


async def _roll_out(
    options: Options,
    replicas: IsolatedReplicas,
    commands: Commands,
    messages: Sequence[Message],
    stats: VersionStats,
) -> None:
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    right = await outputs_of_both_versions(commands, replicas.addresses, messages[:_IMAGES])

    async def change() -> None:
        for number in range(rounds):
            if number % 10 == 0:
                options.log(f"round {number + 1} of {rounds}")
            await commands.serve(f"canary?version=2&share={SHARE}", "1", "2")
            await commands.settle()
            other = asyncio.create_task(commands.send("letters", f"pin?version={1 + number % 2}"))
            await commands.serve("promote", "2")
            await other
            await commands.settle()
            await commands.serve("rollback", "1")
            await commands.settle()

    clients = [
        VersionClient(replicas.addresses[number % _REPLICAS], messages, right, stats, _EVERY)
        for number in range(_CLIENTS)
    ]
    await load_while(clients, change)


def _kill(
    options: Options,
    replicas: IsolatedReplicas,
    commands: Commands,
    messages: Sequence[Message],
) -> int:
    """Kill a replica, roll out without it, start it again; count its answers by wrong versions."""
    wrong = 0
    for number in range(_QUICK_KILLS if options.quick else _KILLS):
        options.log(f"kill {number + 1}")
        last = _REPLICAS - 1
        asyncio.run(commands.serve(f"canary?version=2&share={SHARE}", "1", "2"))
        replicas.kill(last)
        asyncio.run(commands.serve("promote", "2", living=last))
        replicas.start_again(last)
        for message in messages:
            named, _ = version_and_outputs(exchange_or_exit(replicas.addresses[last], message))
            wrong += named != "2"
        asyncio.run(commands.serve("rollback", "1"))
    return wrong


def _overlap_note(stats: VersionStats, history: Sequence[Serving]) -> str:
    return (
        f"{len(stats.answers):,} answers. Two versions answered as the stable one for at most "
        f"{_longest_overlap(stats, history):.2f} s of a promote or rollback."
    )


def _longest_overlap(stats: VersionStats, history: Sequence[Serving]) -> float:
    """Return for how long a stable version still answered after the next one had begun, seconds."""
    longest = 0.0
    for before, after in itertools.pairwise(history):
        if before.stable == after.stable:
            continue
        during = [each for each in stats.answers if after.sent_at <= each.done_at <= after.done_at]
        is_stable = [each for each in during if before.version_for(each.message) == before.stable]
        begun = min((each.done_at for each in is_stable if each.version == after.stable), default=0)
        ended = max(
            (each.done_at for each in is_stable if each.version == before.stable), default=0
        )
        longest = max(longest, ended - begun if begun else 0)
    return longest


def _row(name: str, seconds: Sequence[float]) -> tuple[str, ...]:
    ordered = sorted(seconds)
    shares = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 1)]
    return (name, f"{len(ordered)}", *(f"{each:.2f}" for each in shares))


def _none(name: str, count: int) -> Criterion:
    return Criterion(name, f"{count}", "0", count == 0)


if __name__ == "__main__":
    sys.exit(run("shared_rollouts", __doc__, measure, sys.argv[1:], first_port=8810))
