"""Load on three replicas behind a real proxy, while something is done to them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.reliability.checked_clients import (
    CheckedClient,
    CheckedStats,
    requests_of_random_images,
    right_answers,
)
from benchmarks.reliability.clients import REFUSED, load_while
from benchmarks.reliability.program import Options
from benchmarks.reliability.proxies import ProxyMissingError, balancer, install
from benchmarks.reliability.replicas import Replicas

REPLICAS = 3
DRAIN_DELAY = 1.0
"""Seconds; HAProxy's checks take .6 at most to notice."""
SETTLE_SECONDS = 0.7
"""After a replica is ready, until the next one is ended: the proxy's checks have to notice."""
TIMEOUT_SECONDS = 15.0
"""The longest that a replica may take to end."""
_PROXIES = ("haproxy", "nginx")
_MESSAGES = 16
_FLAGS = ("--models", "digits", "--drain-delay", f"{DRAIN_DELAY:g}", "--log-level", "warning")


@dataclass(frozen=True)
class Case:
    """One proxy, and clients of one kind."""

    proxy: str
    keep_alive: bool

    def __str__(self) -> str:
        """Describe the case."""
        return f"{'kept-alive' if self.keep_alive else 'new connections'}, {self.proxy}"


@dataclass(frozen=True)
class Clients:
    """How many clients send, how often, and whether each sends a failed request once more."""

    count: int
    every: float = 0.0
    """Seconds from one request of a client to its next; 0: at once."""
    is_retrying: bool = False


@dataclass(frozen=True)
class Run:
    """What the clients got."""

    stats: CheckedStats

    @property
    def failures(self) -> int:
        """The number of tries without a right answer."""
        return sum(n for name, n in self.stats.counts.items() if name not in _NO_FAILURES)

    @property
    def described(self) -> str:
        """All outcomes with their numbers."""
        return describe(Counter({k: n for k, n in self.stats.counts.items() if k != "sent"}))

    @property
    def retries_note(self) -> str:
        """A sentence about the requests that the proxy itself sent to a second replica."""
        tries = ", ".join(f"{name}: {n}" for name, n in sorted(self.stats.proxy_tries.items()))
        return f"Statuses of the requests that nginx sent on, try by try: {tries or 'none'}."


_NO_FAILURES = {"200", "sent", REFUSED}

Action = Callable[[Replicas, CheckedStats], Awaitable[None]]
"""What is done to the replicas under load."""


def available_cases(options: Options, notes: list[str]) -> Sequence[Case]:
    """Return every case whose proxy is installed or can be; note the others."""
    found = []
    for proxy in _PROXIES:
        try:
            install(proxy, options.log)
        except ProxyMissingError as error:
            notes.append(f"{proxy} is left out: {error}")
        else:
            found += [Case(proxy, keep_alive) for keep_alive in (True, False)]
    return found


def run_under_load(
    options: Options, case: Case, name: str, clients: Clients, action: Action
) -> Run:
    """Start the replicas and the proxy, and run the action under load.

    name: of the folder that gets the logs.
    """
    folder, stats = options.folder(name), CheckedStats()
    messages = requests_of_random_images(
        _MESSAGES, *(() if case.keep_alive else ("Connection: close",))
    )

    async def run() -> None:
        answers = await right_answers(replicas.addresses, messages)
        sending = [
            CheckedClient(
                address,
                answers,
                stats,
                keep_alive=case.keep_alive,
                every=clients.every,
                is_retrying=clients.is_retrying,
            )
            for _ in range(clients.count)
        ]
        await load_while(sending, lambda: action(replicas, stats))

    port = options.port + 10
    with (
        Replicas(options, folder, port + 1, REPLICAS, *_FLAGS) as replicas,
        balancer(case.proxy, folder, port, replicas.addresses) as address,
    ):
        asyncio.run(run())
    return Run(stats)


def describe(counts: Counter[str]) -> str:
    """Write counts as text, by name."""
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))
