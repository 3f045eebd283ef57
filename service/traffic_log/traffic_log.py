"""Notes what requests are answered, and writes it on a thread of its own. Knows no route.

Noting an answer never waits and never fails: up to a limit answers wait for the thread, further
ones are dropped and counted, as are those that cannot be written.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import structlog

from service.observability.log_format import CURRENT_KEY_NAME, CURRENT_REQUEST_ID
from service.observability.metrics_recorder import Metrics
from service.once_a_minute import OnceAMinute
from service.settings import ServiceSettings
from service.tracing.request_trace import CURRENT_TRACE_ID
from service.traffic_log.log_folder import LogFolder, LogLimits
from service.traffic_log.traffic_record import (
    Row,
    Subject,
    TrafficLine,
    TrafficRecord,
    memory_bytes,
)

MAX_WAITING_BYTES = 32 * 2**20
"""Most bytes of answers and images that wait for the thread, each worker."""
CLOSING_SECONDS = 2.0
"""The longest that the end of a process waits for the last lines."""

_PAUSE_SECONDS = 0.05
"""Pause between two writes: under load, lines are written together and wake the thread rarely."""
_LINES_AT_ONCE, _IMAGE_BYTES_AT_ONCE = 64, 2**16
"""Lines are written together up to these. They go into one segment, so they must be few enough to
leave little of it empty."""

logger = structlog.stdlib.get_logger("service")


class TrafficLog:
    """The traffic log of one process."""

    def __init__(
        self, folder: LogFolder, metrics: Metrics, max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        """Touch no file yet; `start` starts the thread."""
        self._folder = folder
        self._limit = max_waiting_bytes
        self._waiting: deque[tuple[int, TrafficRecord]] = deque()
        """Each with its size in memory."""
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._has_work = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic-log", daemon=True)
        self._warnings = OnceAMinute()
        lines, images = metrics.traffic_log_lines, metrics.traffic_log_images
        self._written, self._dropped = lines.labels("written"), lines.labels("dropped")
        self._stored, self._lost = images.labels("written"), images.labels("dropped")

    @classmethod
    def of(cls, settings: ServiceSettings, metrics: Metrics) -> Self | None:
        """Return the traffic log that the settings describe; None: there is none."""
        if settings.traffic_log is None:
            return None
        open_bytes = settings.workers * settings.traffic_log_segment_bytes
        limits = LogLimits(
            segment_bytes=settings.traffic_log_segment_bytes,
            segment_seconds=settings.traffic_log_segment_seconds,
            finished_bytes=settings.traffic_log_max_bytes - open_bytes,
            store_images=settings.traffic_log_images,
        )
        return cls(LogFolder(settings.traffic_log, limits), metrics)

    def start(self) -> None:
        """Start the thread, which first finishes what an earlier process has left."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits and finish the segment, for at most CLOSING_SECONDS."""
        self._closing.set()
        self._has_work.set()
        self._thread.join(CLOSING_SECONDS)

    def note(self, subject: Subject, rows: Callable[[], Sequence[Row]], numbers: int) -> None:
        """Note the answers to a request; any thread may call it.

        rows: returns the answers, on the writing thread.
        numbers: how many numbers they hold, for the limit on what waits.
        """
        names = CURRENT_REQUEST_ID.get(), CURRENT_TRACE_ID.get(), CURRENT_KEY_NAME.get()
        record = TrafficRecord(time.time(), *names, subject, rows)
        images = subject.images
        size = memory_bytes(images, numbers)
        with self._lock:
            has_room = self._waiting_bytes + size <= self._limit
            if has_room:
                self._waiting_bytes += size
                self._waiting.append((size, record))
        if not has_room:
            self._dropped.inc(len(images))
        elif not self._has_work.is_set():
            self._has_work.set()

    def _run(self) -> None:
        self._attempt(self._folder.recover)
        while not self._closing.is_set():
            self._has_work.wait(self._folder.seconds_until_rotation())
            self._has_work.clear()
            self._write_waiting()
            self._attempt(self._folder.rotate_if_due)
            self._closing.wait(_PAUSE_SECONDS)
        self._write_waiting()
        self._attempt(self._folder.rotate)

    def _write_waiting(self) -> None:
        """Write all that waits, the lines of several answers together."""
        lines: list[TrafficLine] = []
        image_bytes = 0
        while self._waiting:
            size, record = self._waiting.popleft()
            for line in self._lines_of(record):
                lines.append(line)
                image_bytes += line.image.nbytes
                if len(lines) >= _LINES_AT_ONCE or image_bytes >= _IMAGE_BYTES_AT_ONCE:
                    self._write(lines)
                    lines, image_bytes = [], 0
            with self._lock:
                self._waiting_bytes -= size
        if lines:
            self._write(lines)

    def _lines_of(self, record: TrafficRecord) -> Iterator[TrafficLine]:
        made = 0
        try:
            for line in record.lines():
                yield line
                made += 1
        except Exception:  # whatever one answer holds, the log goes on
            self._dropped.inc(len(record.subject.images) - made)
            if self._warnings.may_log():
                logger.exception("an answer is not in the traffic log")

    def _write(self, lines: Sequence[TrafficLine]) -> None:
        try:
            stored, lost = self._folder.append(lines)
        except OSError as error:
            self._dropped.inc(len(lines))
            self._warn(error)
            return
        except Exception:  # whatever one image holds, the log goes on
            self._dropped.inc(len(lines))
            if self._warnings.may_log():
                logger.exception("answers are not in the traffic log")
            return
        self._written.inc(len(lines))
        if stored:
            self._stored.inc(stored)
        if lost:
            self._lost.inc(lost)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if self._warnings.may_log():
            logger.warning(
                "traffic log cannot be written",
                folder=str(self._folder.path),
                reason=error.strerror or str(error),
                hint="free space there or repair it; requests are answered meanwhile, and lines "
                "that are lost are counted in dropserve_traffic_log_lines_total",
            )
