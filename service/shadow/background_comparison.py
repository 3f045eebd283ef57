"""Answers what the stable version has answered by its shadow, too, and counts the differences.

Noting an answer never waits and never fails, on whichever thread that was built: up to a limit
answers wait, further ones are dropped and counted. The comparison runs where there is room, see
`SpareTime`.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import NamedTuple

import structlog

from model.errors import DropserveError
from service.engine.model_loader import LoadedModel
from service.observability.log_format import CURRENT_REQUEST_ID
from service.registry.active_versions import ActiveVersions
from service.registry.canary_and_shadow_traffic_split import is_shadowed
from service.registry.model_repository import Repository
from service.shadow.difference_of_two_answers import ComparedAnswer, compare
from service.shadow.shadow_counts import ShadowCounts, VersionPair
from service.shadow.spare_time import SpareTime
from service.traffic_log.traffic_record import Row, Subject, memory_bytes

MAX_WAITING_BYTES = 16 * 2**20
"""Most bytes of answers and images that wait to be compared, each worker."""
_NUMBERS_AT_ONCE, _MAX_IMAGES_AT_ONCE = 2**10, 8
"""Most probabilities, and most images, that one run compares: a short run is soon out of the way.
"""
_MAX_INLINE_NUMBERS = 2**12
"""Answers of more numbers are put together on a thread."""
_FAILURE_REST_SECONDS = 1.0
"""The least rest after a run that has failed."""

logger = structlog.stdlib.get_logger("service")

Answer = Callable[[LoadedModel, Subject], Awaitable[Sequence[Row]]]
"""Answers the images of a subject by a version as its route and options say."""


class _Waiting(NamedTuple):
    subject: Subject
    rows: Callable[[], Sequence[Row]]
    numbers: int
    size: int


class ShadowComparison:
    """The comparison of all shadows of one process."""

    def __init__(
        self,
        repository: Repository,
        answer: Answer,
        spare_time: SpareTime,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Compare nothing yet; `run` does.

        answer: answers by the shadow. spare_time: for how long it rests after each run.
        """
        self.counts = ShadowCounts(repository.metrics)
        self._repository = repository
        self._answer = answer
        self._spare_time = spare_time
        self._limit = max_waiting_bytes
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._has_work = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where `run` runs; None: not yet, and nothing is compared."""
        self._loop_thread: int | None = None
        self._problems: dict[VersionPair, str] = {}

    def wants(self, model: LoadedModel) -> bool:
        """Return whether answers of a version should be noted."""
        active = self._repository.compared_versions(model.name)
        return (
            active is not None
            and active.stable is model
            and is_shadowed(CURRENT_REQUEST_ID.get() or "", active.rollout.shadow_share)
        )

    def problem(self, pair: VersionPair) -> str | None:
        """Return why the last run failed in this process; None if it did not."""
        return self._problems.get(pair)

    def note(self, subject: Subject, rows: Callable[[], Sequence[Row]], numbers: int) -> None:
        """Note the answers to a request, which `wants` has asked for; any thread may call it.

        rows: returns the answers. numbers: how many numbers they hold, for the limit.
        """
        if self._loop is None:
            return
        if threading.get_ident() == self._loop_thread:
            self._note(subject, rows, numbers)
        else:  # a large answer is built on a thread
            self._loop.call_soon_threadsafe(self._note, subject, rows, numbers)

    def _note(self, subject: Subject, rows: Callable[[], Sequence[Row]], numbers: int) -> None:
        active = self._repository.compared_versions(subject.model)
        if active is None or active.stable.version != subject.version:
            return  # another version serves meanwhile
        size = memory_bytes(subject.images, numbers)
        if self._waiting_bytes + size > self._limit:
            self.counts.add_dropped(_pair(active), len(subject.images))
            return
        self._waiting_bytes += size
        self._waiting.append(_Waiting(subject, cache(rows), numbers, size))
        self._has_work.set()

    async def run(self) -> None:
        """Compare what is noted from now on, until cancelled."""
        self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._waiting:
                waiting = self._waiting.popleft()
                try:
                    await self._compare(waiting)
                finally:
                    self._waiting_bytes -= waiting.size

    async def _compare(self, waiting: _Waiting) -> None:
        """Compare the answers to one request, a few at a time."""
        subject = waiting.subject
        count = len(subject.images)
        done = 0
        while done < count:
            active = self._repository.compared_versions(subject.model)
            if active is None or active.stable.version != subject.version:
                return  # another version serves meanwhile
            images = _images_at_once(active, busy=self._spare_time.is_busy)
            rows = slice(done, done + images)
            part = subject._replace(images=subject.images[rows])
            began = time.perf_counter()
            has_failed = not await self._attempt(active, part, waiting, rows)
            done += len(part.images)
            least = _FAILURE_REST_SECONDS if has_failed else 0.0
            await self._spare_time.rest(time.perf_counter() - began, least)

    async def _attempt(
        self, active: ActiveVersions, part: Subject, waiting: _Waiting, rows: slice
    ) -> bool:
        """Compare some images; return False, and say why, if the shadow cannot answer them."""
        pair = _pair(active)
        shadow = active.shadow
        assert shadow is not None
        try:
            with shadow:  # so that it is not closed meanwhile
                now = await self._answer(shadow, part)
            given = await self._given_rows(waiting)
            differences = [
                compare(ComparedAnswer.of(before), after)
                for before, after in zip(given[rows], now, strict=True)
            ]
        except Exception as error:  # whatever a version does, the others go on
            self.counts.add_failed(pair, len(part.images))
            self._report(pair, error)
            return False
        self._problems.pop(pair, None)
        for each in differences:
            self.counts.add(pair, each)
        return True

    async def _given_rows(self, waiting: _Waiting) -> Sequence[Row]:
        if waiting.numbers <= _MAX_INLINE_NUMBERS:
            return waiting.rows()
        return await asyncio.to_thread(waiting.rows)

    def _report(self, pair: VersionPair, error: Exception) -> None:
        """Keep why a run failed, and log it if the one before did not fail."""
        known = isinstance(error, DropserveError)
        reason = str(error) if known else "The log has the reason."
        if pair not in self._problems:
            logger.warning(
                "shadow version fails",
                **pair._asdict(),
                reason=str(error),
                exc_info=None if known else error,
            )
        self._problems[pair] = reason


def _pair(active: ActiveVersions) -> VersionPair:
    assert active.shadow is not None
    return VersionPair(active.stable.name, active.stable.version, active.shadow.version)


def _images_at_once(active: ActiveVersions, *, busy: bool) -> int:
    """Return how many images one run may have."""
    if busy:
        return 1
    classes = len(active.stable.bundle.manifest.class_names)
    return min(_MAX_IMAGES_AT_ONCE, max(1, _NUMBERS_AT_ONCE // classes))
