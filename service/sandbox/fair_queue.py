"""A queue of jobs that is fair between client addresses. Knows no process and no memory.

A client that has used much time comes after those that have used little (start-time fair queueing,
Goyal et al. 1996), and never has more than half of the jobs or bytes in the queue.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from service.errors import OverloadedError
from service.sandbox.child_process_handle import Bytes
from service.sandbox.child_process_messages import Task

_EVICTION_THRESHOLD, _MAX_ACCOUNTS = 256, 4096
"""Above the first number of accounts, idle ones are evicted that are not ahead of the virtual time
of the queue, and so would lose nothing; above the second, any idle ones are."""


@dataclass(eq=False, slots=True)
class Job:
    """A task in the queue, waiting or running, and the future of its result."""

    task: Task
    body: bytes
    client: str
    result: "asyncio.Future[tuple[dict[str, Any], Bytes]]"
    max_answer_bytes: int
    running: "asyncio.Task[None] | None" = None
    """The coroutine that exchanges messages with the process; None while the job waits."""
    reserved_bytes: int = 0
    """Memory that is reserved for the job while it runs."""


@dataclass(eq=False, slots=True)
class _Account:
    """The jobs of one client address, and the time that it has used."""

    waiting: deque[Job] = field(default_factory=deque)
    running: int = 0
    """Number of running jobs."""
    bytes: int = 0
    """Bytes of the bodies of all its jobs."""
    jobs: int = 0
    """Number of waiting and running jobs."""
    used_seconds: float = 0
    """Virtual time of the client."""


class FairQueue:
    """The waiting and running jobs of all clients."""

    def __init__(self, max_jobs: int, max_bytes: int, max_running_per_client: int) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._max_running_per_client = max_running_per_client
        self._accounts: dict[str, _Account] = {}
        self._virtual_seconds = 0.0
        self.job_count = 0
        """Number of waiting and running jobs."""
        self.total_bytes = 0
        """Bytes of the bodies of all jobs."""

    def add(self, job: Job) -> None:
        """Add a waiting job; raises OverloadedError if the queue is full for its client."""
        account = self._accounts.get(job.client) or _Account(used_seconds=self._virtual_seconds)
        size = len(job.body)
        if (
            self.job_count >= self._max_jobs
            or self.total_bytes + size > self._max_bytes
            or account.jobs >= max(1, self._max_jobs // 2)
            or (account.jobs and account.bytes + size > self._max_bytes // 2)
        ):
            raise OverloadedError(
                "Too many large bodies are waiting to be read; try again in a second."
            )
        if not account.jobs:
            account.used_seconds = max(account.used_seconds, self._virtual_seconds)
        self._accounts[job.client] = account
        self.job_count += 1
        self.total_bytes += size
        account.jobs += 1
        account.bytes += size
        account.waiting.append(job)

    def remove(self, job: Job) -> None:
        """Remove a job that is done, timed out or cancelled by its client."""
        account = self._accounts[job.client]
        self.job_count -= 1
        self.total_bytes -= len(job.body)
        account.jobs -= 1
        account.bytes -= len(job.body)
        if job.running is None:
            with suppress(ValueError):
                account.waiting.remove(job)
        if not account.jobs and len(self._accounts) > _EVICTION_THRESHOLD:
            self._evict_accounts()

    def waiting(self) -> list[Job]:
        """List all jobs that wait."""
        return [job for account in self._accounts.values() for job in account.waiting]

    def has_next(self) -> bool:
        """True if `start_next` would return a job."""
        return self._next_account() is not None

    def start_next(self) -> Job | None:
        """Return the next job, which counts as running until `finish`; None if none may run."""
        account = self._next_account()
        if account is None:
            return None
        self._virtual_seconds = account.used_seconds
        account.running += 1
        return account.waiting.popleft()

    def finish(self, job: Job, used_seconds: float) -> None:
        """Charge the time of a job that has run to its client."""
        account = self._accounts[job.client]
        account.running -= 1
        account.used_seconds += used_seconds

    def _next_account(self) -> _Account | None:
        """Return the account with the least used time, of those that may start a job."""
        limit = self._max_running_per_client
        ready = [each for each in self._accounts.values() if each.waiting and each.running < limit]
        return min(ready, key=lambda each: each.used_seconds, default=None)

    def _evict_accounts(self) -> None:
        """Evict accounts without jobs, those with the least used time first."""
        idle = [
            (each.used_seconds, client)
            for client, each in self._accounts.items()
            if not each.jobs and not each.running
        ]
        for used_seconds, client in sorted(idle):
            if used_seconds > self._virtual_seconds and len(self._accounts) <= _MAX_ACCOUNTS:
                break
            del self._accounts[client]
