"""Where the states of drift tests are kept: in memory, or in files that several workers share.

Knows no test: a state is a string of bytes.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import structlog

from service.observability.metrics_recorder import MULTIPROCESS_VARIABLE

logger = structlog.stdlib.get_logger("service")

_PREFIX = "drift-"
_MAX_BYTES = 2**16


class DriftStates:
    """States by key, until the service ends.

    Several workers share one test of each version, since it is the joint stream that is tested: W
    tests of a W-th of the stream each would need W times as many images, and a smaller level each.
    """

    def __init__(self, folder: Path | None) -> None:
        """Read nothing yet; folder: shared by the workers, None for a single process."""
        self._folder = folder
        self._in_memory: dict[str, bytes] = {}
        self._has_warned = False

    @classmethod
    def of_service(cls) -> Self:
        """Keep them beside the metrics' files where there are several workers, else in memory."""
        folder = os.environ.get(MULTIPROCESS_VARIABLE)
        return cls(None if folder is None else Path(folder))

    def update(self, key: str, step: Callable[[bytes], bytes]) -> bool:
        """Replace a state by step(state); return whether that was possible now.

        It is not while another worker does so, which takes less than a millisecond, and never
        waits for it: it may have been stopped.

        key: letters, digits and the characters `-`, `.` and `_`.
        step: is given the state, empty at first, and returns the new one; it may be called in vain.
        """
        if self._folder is None:
            self._in_memory[key] = step(self._in_memory.get(key, b""))
            return True
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._folder / f"{_PREFIX}{key}", flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(descriptor, step(os.pread(descriptor, _MAX_BYTES, 0)), 0)
            finally:
                os.close(descriptor)
        except BlockingIOError:
            return False
        except OSError as error:
            self._warn_once(error)
            return False
        return True

    def _warn_once(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "drift is not tested",
                reason=f"{error}; free space in the temporary folder, or name another with TMPDIR",
            )
