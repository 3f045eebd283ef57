"""Writes to a feedback file on a thread of its own, what waits together in one transaction.

Noting an answer never waits and never fails: up to a limit answers wait for the thread, further
ones are dropped and counted. A true label waits until it is on the disk. While the file cannot be
used, labels are refused with the reason, and the next attempt opens it anew; so does the next one
after the file was moved or removed. Knows no route.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from service.errors import FeedbackFullError, FeedbackUnavailableError, ServiceError
from service.feedback.feedback_file import FeedbackFile, FeedbackFileError
from service.feedback.label_transaction import LabelTransaction, forget_oldest_answers
from service.feedback.remembered_answer import VersionIdentity
from service.observability.metrics_recorder import Metrics
from service.once_a_minute import OnceAMinute

MAX_WAITING_BYTES = 16 * 2**20
"""Most bytes of answers that wait for the thread, each worker."""
CLOSING_SECONDS = 2.0
"""The longest that the end of a process waits for the last answers."""

_PAUSE_SECONDS = 0.05
"""So long answers gather. A true label does not wait for it."""
_FORGOTTEN_AT_ONCE = 100
_MAX_JOBS_AT_ONCE = 512
_MAX_LOST_REQUESTS = 10_000

Result = TypeVar("Result")
logger = structlog.stdlib.get_logger("service")


class FeedbackLimits(NamedTuple):
    """How much the file holds, and how often its alarms may be false."""

    max_bytes: int
    max_answers: int
    """Requests whose answers are remembered."""
    alarm_rate: float


class AnswerRecord(NamedTuple):
    """An answer that waits to be remembered."""

    time: float
    """When it was built, seconds since 1970."""
    request_id: str
    version: VersionIdentity
    content: Callable[[], bytes]
    """Returns `RememberedAnswer.to_bytes`; called on the thread."""
    counts_once: bool = False
    """Whether it is not remembered if the latest answer of the version has a label already."""


class _Job(NamedTuple):
    """What somebody waits for."""

    work: Callable[[LabelTransaction, FeedbackFile], Any]
    future: "Future[Any]"
    content_bytes: int
    """About how much it adds to the file; 0: it only reads."""


class FeedbackWriter:
    """The thread of one process that reads and writes the file."""

    def __init__(self, path: Path, limits: FeedbackLimits, metrics: Metrics) -> None:
        """Touch no file yet; `start` starts the thread."""
        self.path = path
        self._limits = limits
        self._file: FeedbackFile | None = None
        self._records: deque[tuple[int, AnswerRecord]] = deque()
        """Each with its size in memory."""
        self._waiting_bytes = 0
        self._jobs: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._has_work, self._is_urgent = threading.Event(), threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._warnings = OnceAMinute()
        answers = metrics.feedback_answers
        self._remembered, self._dropped = answers.labels("remembered"), answers.labels("dropped")
        self._failing_gauge = metrics.feedback_failing
        self._is_failing = False
        """From a transaction that failed to one that stored something."""
        self._lost: OrderedDict[str, None] = OrderedDict()
        """The latest requests whose answers could not be stored. Changed under the lock."""

    def start(self) -> None:
        """Start the thread, which opens the file at once, so that a fault is known early."""
        self._has_work.set()
        self._is_urgent.set()
        self._thread.start()

    def close(self) -> None:
        """Write what waits, for at most CLOSING_SECONDS."""
        self._is_closing = True
        self._is_urgent.set()
        self._has_work.set()
        if self._thread.is_alive():
            self._thread.join(CLOSING_SECONDS)

    def note(self, record: AnswerRecord, size: int) -> None:
        """Note an answer; any thread may call it. size: its bytes in memory."""
        with self._lock:
            has_room = self._waiting_bytes + size <= MAX_WAITING_BYTES
            if has_room:
                self._waiting_bytes += size
                self._records.append((size, record))
        if not has_room:
            self._drop([record])
        elif not self._has_work.is_set():
            self._has_work.set()

    def submit(
        self, work: Callable[[LabelTransaction, FeedbackFile], Result], content_bytes: int = 0
    ) -> "Future[Result]":
        """Let the thread do something within the next transaction, after the answers before.

        work: may raise a ServiceError before it has changed anything.
        content_bytes: about how much it adds to the file; 0: it only reads.
        """
        future: Future[Result] = Future()
        with self._lock:
            self._jobs.append(_Job(work, future, content_bytes))
        self._is_urgent.set()
        self._has_work.set()
        return future

    def _run(self) -> None:
        while not self._is_closing:
            self._has_work.wait()
            self._is_urgent.wait(_PAUSE_SECONDS)
            self._has_work.clear()
            self._is_urgent.clear()
            self._do_what_waits()
        self._do_what_waits()
        if self._file is not None:
            self._file.close()

    def _do_what_waits(self) -> None:
        with self._lock:
            records = [record for _, record in self._records]
            self._records.clear()
            self._waiting_bytes = 0
            jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), _MAX_JOBS_AT_ONCE))]
            if self._jobs:
                self._is_urgent.set()
                self._has_work.set()
        try:
            self._write(records, jobs)
        except FeedbackFileError as error:
            self._fail(records, jobs, error)
        except Exception:  # whatever one answer holds, the thread goes on
            logger.exception("feedback is not stored")
            self._fail(
                records, jobs, FeedbackFileError("The feedback was not stored; see the log.")
            )

    def _write(self, records: Sequence[AnswerRecord], jobs: Sequence[_Job]) -> None:
        """Write all in one transaction, and tell those who wait; raises FeedbackFileError."""
        file = self._opened_file()
        contents = [record.content() for record in records]
        flushed = any(job.content_bytes for job in jobs)
        with file.transaction(flushed=flushed) as connection:
            change = LabelTransaction(connection, self._limits.alarm_rate, self._may_be_lost)
            sizes = [*(job.content_bytes for job in jobs), sum(map(len, contents))]
            *fits, are_remembered = _make_room(file, sizes)
            if are_remembered:
                _remember(records, contents, change)
            results = [
                _attempt(job, change, file, has_room=has_room)
                for job, has_room in zip(jobs, fits, strict=True)
            ]
            change.finish()
            if records:
                forget_oldest_answers(connection, self._limits.max_answers)
        if not file.is_in_place:
            raise FeedbackFileError(f"{self.path} was moved while it was written; send it again.")
        if are_remembered:
            self._remembered.inc(len(records))
        else:
            self._drop(records)
        if file.has_changed:  # what only reads may succeed on a full disk
            self._show_failing(failing=False)
        for job, result in zip(jobs, results, strict=True):
            _tell(job, result)

    def _opened_file(self) -> FeedbackFile:
        """Return the file at the path; raises FeedbackFileError."""
        if self._file is not None and not self._file.is_in_place:
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = FeedbackFile.open(self.path, self._limits.max_bytes)
        return self._file

    def _may_be_lost(self, request_id: str) -> bool:
        """Return whether the answer to a request may have been dropped."""
        return self._is_failing or request_id in self._lost

    def _show_failing(self, *, failing: bool) -> None:
        self._is_failing = failing
        self._failing_gauge.set(failing)

    def _fail(
        self, records: Sequence[AnswerRecord], jobs: Sequence[_Job], error: FeedbackFileError
    ) -> None:
        self._drop(records)
        self._show_failing(failing=True)
        if self._file is not None:
            self._file.close()
            self._file = None
        for job in jobs:
            _tell(job, FeedbackUnavailableError(str(error)))
        if self._warnings.may_log():
            logger.warning("feedback cannot be stored", reason=str(error))

    def _drop(self, records: Sequence[AnswerRecord]) -> None:
        """Count answers that are not stored, and keep whose they are; any thread may call it."""
        self._dropped.inc(len(records))
        with self._lock:
            self._lost.update((record.request_id, None) for record in records)
            while len(self._lost) > _MAX_LOST_REQUESTS:
                self._lost.popitem(last=False)


def _remember(
    records: Sequence[AnswerRecord], contents: Sequence[bytes], change: LabelTransaction
) -> None:
    for record, content in zip(records, contents, strict=True):
        if not (record.counts_once and change.has_label(record.request_id, record.version)):
            change.remember(record.request_id, record.version, content, record.time)


def _attempt(job: _Job, change: LabelTransaction, file: FeedbackFile, *, has_room: bool) -> Any:
    """Return the result of a job, or the error that is its own."""
    if not has_room:
        return FeedbackFullError(
            "The file of feedback is full, and no label in it is ever dropped; ask the "
            "operator to raise --feedback-max-bytes or to begin another file."
        )
    try:
        return job.work(change, file)
    except ServiceError as error:
        return error


def _make_room(file: FeedbackFile, sizes: Iterable[int]) -> list[bool]:
    """Forget the oldest answers until there is room for what is added, in bytes each.

    Call it in a transaction. Returns which of them fit, beside those before that do. For one that
    would not even fit if all answers were forgotten, none is.
    """
    fits, added = [], 0
    for size in sizes:
        fits.append(size == 0 or _make_room_for_all(file, added + size))
        added += size if fits[-1] else 0
    return fits


def _make_room_for_all(file: FeedbackFile, added: int) -> bool:
    """Forget the oldest answers until there is room for so many bytes; False: and none else."""
    if file.lacking_bytes(added) <= 0:
        return True
    file.connection.execute("SAVEPOINT room")
    has_room = _forget_until_there_is_room(file, added)
    if not has_room:
        file.connection.execute("ROLLBACK TO room")
    file.connection.execute("RELEASE room")
    return has_room


def _forget_until_there_is_room(file: FeedbackFile, added: int) -> bool:
    """Forget the oldest answers until there is room, or no answer is left and there is none."""
    while file.lacking_bytes(added) > 0:
        forgotten = file.connection.execute(
            "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT ?)",
            (_FORGOTTEN_AT_ONCE,),
        ).rowcount
        if not forgotten:
            return False
    return True


def _tell(job: _Job, result: Any) -> None:
    """Give a result or an error to whoever waits, unless he has gone."""
    if not job.future.set_running_or_notify_cancel():
        return
    if isinstance(result, ServiceError):
        job.future.set_exception(result)
    else:
        job.future.set_result(result)
