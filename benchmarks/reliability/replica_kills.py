"""SIGKILL to one of three replicas behind a real proxy, under load."""

import asyncio
import signal
import time

from benchmarks.reliability.checked_clients import WRONG, CheckedStats, Failure
from benchmarks.reliability.program import Options
from benchmarks.reliability.replica_load import (
    REPLICAS,
    SETTLE_SECONDS,
    TIMEOUT_SECONDS,
    Clients,
    available_cases,
    describe,
    run_under_load,
)
from benchmarks.reliability.replicas import Replicas
from benchmarks.reliability.report import Criterion

_KILLS, _QUICK_KILLS = 20, 4
_CLIENTS = Clients(32, is_retrying=True)
_LATE_SECONDS = 0.05
"""How long after the end of a killed process a request may have been sent and still count as in
flight on it: until then its port takes connections, and then the kernel has to tell the proxy."""
_NOTICED_SECONDS = 1.0
"""How long after that end such a request may fail."""
SETTING = (
    f"Kills: {_CLIENTS.count} clients in a closed loop, which send a failed request once more; "
    "a failed try counts as lost, whatever became of the second one."
)


def kill_replicas(
    options: Options,
    rows: list[tuple[str, ...]],
    criteria: list[Criterion],
    notes: list[str],
) -> None:
    """Kill one replica after the other and start it again, many times."""
    kills = _QUICK_KILLS if options.quick else _KILLS
    failed = unexplained = twice = wrong = 0
    cases = available_cases(options, notes)
    for index, case in enumerate(cases):
        count = len(range(index, kills, len(cases)))
        options.log(f"{count} kills: {case}")
        killing = Kills(count)
        run = run_under_load(options, case, f"kills-{index}", _CLIENTS, killing.run)
        sent, title = f"{run.stats.counts['sent']:,}", f"SIGKILL to one of {REPLICAS}, {case}"
        rows.append((title, f"{count}", sent, run.described, f"{run.failures}", ""))
        failures, seconds = run.stats.failures, run.stats.second_tries
        failed += len(failures)
        odd = [each for each in failures if not killing.explains(each)]
        unexplained += len(odd)
        notes += [f"Kills, {case}: unexplained: {killing.describe(each)}." for each in odd]
        twice += seconds.total() - seconds["200"]
        wrong += run.stats.counts[WRONG]
        in_flight = ", ".join(map(str, killing.in_flight))
        notes.append(
            f"Kills, {case}: requests in flight at the kills, on all replicas: {in_flight}. "
            f"Second tries: {describe(seconds) or 'none'}."
            + (f" {run.retries_note}" if case.proxy == "nginx" else "")
        )
    name = "failed requests that were not in flight on the killed replica"
    criteria += [
        Criterion(name, f"{unexplained} of {failed}", "0", unexplained == 0),
        Criterion("requests that failed twice", f"{twice}", "0", twice == 0),
        Criterion("wrong answers around kills", f"{wrong}", "0", wrong == 0),
    ]


class Kills:
    """Kills replicas in turn, and remembers which and when."""

    def __init__(self, count: int) -> None:
        """Prepare `count` kills."""
        self._count = count
        self._kills: list[tuple[float, float, str]] = []
        """When SIGKILL was sent, when the process had ended, seconds of `time.monotonic`, and the
        address of the replica."""
        self.in_flight: list[int] = []
        """Requests in flight on all replicas at each kill."""

    async def run(self, replicas: Replicas, stats: CheckedStats) -> None:
        """Kill each replica in turn, and start it again."""
        for number in range(self._count):
            index = number % REPLICAS
            await asyncio.sleep(SETTLE_SECONDS)
            host, port = replicas.addresses[index]
            self.in_flight.append(stats.in_flight)
            killed_at = time.monotonic()
            await replicas.end(index, signal.SIGKILL, TIMEOUT_SECONDS)
            self._kills.append((killed_at, time.monotonic(), f"{host}:{port}"))
            await asyncio.sleep(SETTLE_SECONDS)
            await replicas.start_again(index)
        await asyncio.sleep(SETTLE_SECONDS)

    def describe(self, failure: Failure) -> str:
        """Write a failure beside the last kill before it."""
        kills = [each for each in self._kills if each[0] <= failure.failed_at]
        killed_at, ended_at, killed = kills[-1] if kills else (0.0, 0.0, "none")
        sent, failed = failure.sent_at - killed_at, failure.failed_at - killed_at
        return (
            f"{failure.outcome} of {failure.replica or 'no replica'}, sent {sent:.3f} s and failed "
            f"{failed:.3f} s after the kill of {killed}, which ended after "
            f"{ended_at - killed_at:.3f} s"
        )

    def explains(self, failure: Failure) -> bool:
        """Return whether a failed request was in flight on a replica when that was killed.

        HAProxy does not name the replica where it closes a kept-alive connection: then the time has
        to be that of the kill.
        """
        return failure.outcome != WRONG and any(
            failure.replica in {killed, ""}
            and failure.sent_at <= ended_at + _LATE_SECONDS
            and killed_at <= failure.failed_at <= ended_at + _NOTICED_SECONDS
            for killed_at, ended_at, killed in self._kills
        )
