"""Writes log lines to a file descriptor on a thread of its own. Knows no line's format.

Logging never waits for the reader of the log. While nobody reads, lines are queued up to a limit
and further ones are dropped; their number is written once there is room again.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

MAX_WAITING_BYTES = 4 * 2**20
"""Most bytes of lines that are queued while nobody reads."""
FLUSH_SECONDS = 1.0
"""The longest that the end of a process waits for its last lines to be read."""

_CHUNK_BYTES = 2**16
_PAUSE_SECONDS = 0.005
"""Pause between two writes: under load, lines are written together and wake the thread rarely."""


class LineWriter:
    """Writes whole lines, in order. Only one thread at a time may call `put`."""

    def __init__(
        self,
        descriptor: int | None,
        format_dropped: Callable[[int], bytes],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Start the thread.

        descriptor: None where there is nothing to write to, as with a closed standard output.
        format_dropped: returns the log line for a number of dropped lines.
        """
        self._descriptor = descriptor
        self._format_dropped = format_dropped
        self._limit = max_waiting_bytes
        self._lines: deque[bytes] = deque()
        # Each counter is changed by one thread alone, so that neither thread needs a lock: these
        # two by the thread that calls `put`, the next three by the writing thread.
        self._put_bytes = self._refused_lines = 0
        self._taken_bytes = self._lost_lines = self._reported_lines = 0
        self._is_open = descriptor is not None
        self._has_work = threading.Event()
        self._skip_pause = threading.Event()
        if self._is_open:
            threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def dropped_lines(self) -> int:
        """The lines that were not written, and never will be."""
        return self._refused_lines + self._lost_lines

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it where too many bytes are queued; never block."""
        if not self._is_open:
            return
        if self._put_bytes - self._taken_bytes + len(line) > self._limit:
            self._refused_lines += 1
            return
        self._lines.append(line)
        self._put_bytes += len(line)
        if not self._has_work.is_set():
            self._has_work.set()

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Wait until every queued line is written, at most `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while self._is_open and self._is_behind() and time.monotonic() < deadline:
            self._skip_pause.set()
            self._has_work.set()
            time.sleep(_PAUSE_SECONDS / 5)
        self._skip_pause.clear()

    def close(self) -> None:
        """Accept no more lines; the thread ends once it has written the queued ones."""
        self._is_open = False
        self._skip_pause.set()
        self._has_work.set()

    def _is_behind(self) -> bool:
        if self._taken_bytes < self._put_bytes:
            return True
        return self._reported_lines < self._refused_lines + self._lost_lines

    def _run(self) -> None:
        try:
            while self._is_open or self._lines:
                self._has_work.wait()
                self._has_work.clear()
                self._write_all()
                self._skip_pause.wait(_PAUSE_SECONDS)
        except BrokenPipeError:
            self._is_open = False
            self._lines.clear()

    def _write_all(self) -> None:
        while self._lines:
            chunk = []
            length = 0
            while self._lines and length < _CHUNK_BYTES:
                line = self._lines.popleft()
                chunk.append(line)
                length += len(line)
            if not self._write(b"".join(chunk)):
                self._lost_lines += len(chunk)
            self._taken_bytes += length
        dropped = self._refused_lines + self._lost_lines - self._reported_lines
        if dropped and self._write(self._format_dropped(dropped)):
            self._reported_lines += dropped

    def _write(self, content: bytes) -> bool:
        """Write all of the content; return False if the file takes no more (a full disk)."""
        assert self._descriptor is not None
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the pipe non-blocking
                select.select([], [self._descriptor], [])
            except BrokenPipeError:  # the reader has closed the pipe
                raise
            except OSError:
                return False
        return True
