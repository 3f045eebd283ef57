"""Rolling restarts of three replicas behind a real proxy, under load."""

import asyncio
import signal

from benchmarks.reliability.checked_clients import WRONG, CheckedStats
from benchmarks.reliability.program import Options
from benchmarks.reliability.replica_load import (
    DRAIN_DELAY,
    REPLICAS,
    SETTLE_SECONDS,
    TIMEOUT_SECONDS,
    Action,
    Clients,
    available_cases,
    run_under_load,
)
from benchmarks.reliability.replicas import Replicas
from benchmarks.reliability.report import Criterion

_ROUNDS, _QUICK_ROUNDS = 50, 4
_CLIENTS = Clients(16, every=0.02)
SETTING = (
    f"{REPLICAS} replicas: --drain-delay {DRAIN_DELAY:g}, {_CLIENTS.count} clients that each send "
    f"every {1000 * _CLIENTS.every:.0f} ms; one time is one restart of each."
)


def restart_replicas(
    options: Options,
    rows: list[tuple[str, ...]],
    criteria: list[Criterion],
    notes: list[str],
) -> None:
    """End each replica by SIGTERM and start it again, one after the other, many times."""
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    lost = wrong = 0
    cases = available_cases(options, notes)
    for index, case in enumerate(cases):
        count = len(range(index, rounds, len(cases)))
        options.log(f"{count} rolling restarts: {case}")
        times: list[float] = []
        run = run_under_load(options, case, f"replicas-{index}", _CLIENTS, _restarts(count, times))
        sent, most = f"{run.stats.counts['sent']:,}", f"{max(times):.1f} at most"
        title = f"{REPLICAS} replicas, {case}"
        rows.append((title, f"{count}", sent, run.described, f"{run.failures}", most))
        if case.proxy == "nginx":
            notes.append(f"Restarts, {case}: {run.retries_note}")
        lost += run.failures
        wrong += run.stats.counts[WRONG]
    criteria += [
        Criterion("requests lost in rolling restarts", f"{lost}", "0", lost == 0),
        Criterion("wrong answers in rolling restarts", f"{wrong}", "0", wrong == 0),
    ]


def _restarts(rounds: int, times: list[float]) -> Action:
    async def action(replicas: Replicas, _stats: CheckedStats) -> None:
        for _ in range(rounds):
            for index in range(REPLICAS):
                await asyncio.sleep(SETTLE_SECONDS)
                times.append(await replicas.end(index, signal.SIGTERM, TIMEOUT_SECONDS))
                await replicas.start_again(index)
        await asyncio.sleep(SETTLE_SECONDS)

    return action
