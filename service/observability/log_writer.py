"""Log lines -> a file descriptor, by a thread of their own. Knows no line's form.

Whoever writes a line never waits for whoever reads it: while nobody does, lines are kept up to a
limit, further ones are dropped, and how many is said once there is room.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

MAX_WAITING_BYTES = 4 * 2**20
"""Of lines that nobody has read yet."""
FLUSH_SECONDS = 1.0
"""The longest that the end of a process waits for its last lines to be read."""

_CHUNK_BYTES = 2**16
_PAUSE_SECONDS = 0.005
"""Between two writes: under load, lines go out together, and waking the thread costs little."""


class LineWriter:
    """Writes whole lines, in order. One thread at a time may call `put`."""

    def __init__(
        self,
        descriptor: int | None,
        say_dropped: Callable[[int], bytes],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Start the thread.

        descriptor: None where there is nothing to write to, as with a closed standard output.
        say_dropped: a number of lines -> the line that says so many were dropped.
        """
        self._descriptor = descriptor
        self._say_dropped = say_dropped
        self._limit = max_waiting_bytes
        self._lines: deque[bytes] = deque()
        # Each is changed by one thread alone, so that neither needs a lock.
        self._put_bytes = self._refused = 0
        self._taken_bytes = self._lost = self._told = 0
        self._is_open = descriptor is not None
        self._awake = threading.Event()
        self._hurry = threading.Event()
        if self._is_open:
            threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Have a line written, or drop it where too many wait; never wait."""
        if not self._is_open:
            return
        if self._put_bytes - self._taken_bytes + len(line) > self._limit:
            self._refused += 1
            return
        self._lines.append(line)
        self._put_bytes += len(line)
        if not self._awake.is_set():
            self._awake.set()

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until every line is written, so many seconds at most."""
        deadline = time.monotonic() + seconds
        while self._is_open and self._is_behind() and time.monotonic() < deadline:
            self._hurry.set()
            self._awake.set()
            time.sleep(_PAUSE_SECONDS / 5)
        self._hurry.clear()

    def close(self) -> None:
        """Take no more lines, and let the thread end once it has written what it has."""
        self._is_open = False
        self._hurry.set()
        self._awake.set()

    def _is_behind(self) -> bool:
        return self._taken_bytes < self._put_bytes or self._told < self._refused + self._lost

    def _run(self) -> None:
        try:
            while self._is_open or self._lines:
                self._awake.wait()
                self._awake.clear()
                self._write_all()
                self._hurry.wait(_PAUSE_SECONDS)
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
                self._lost += len(chunk)
            self._taken_bytes += length
        dropped = self._refused + self._lost - self._told
        if dropped and self._write(self._say_dropped(dropped)):
            self._told += dropped

    def _write(self, content: bytes) -> bool:
        """Write all of it; False where the file takes no more, as on a full disk."""
        assert self._descriptor is not None
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the pipe one that does not wait
                select.select([], [self._descriptor], [])
            except BrokenPipeError:  # its reader has gone for good
                raise
            except OSError:
                return False
        return True
