"""Files in a folder that the workers of a service share, each changed by one of them at a time.

Knows nothing of what they hold.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from service.observability.metrics_recorder import MULTIPROCESS_VARIABLE

logger = structlog.stdlib.get_logger("service")


def shared_folder() -> Path | None:
    """Return the folder of the metrics' files; None where there is a single process."""
    folder = os.environ.get(MULTIPROCESS_VARIABLE)
    return None if folder is None else Path(folder)


class SharedFiles:
    """Changes files under a lock that is never waited for: its holder may have been stopped."""

    def __init__(self, folder: Path, failure: str) -> None:
        """Open nothing yet; failure: the event that is logged, once, when a file cannot be written.

        folder: one that this service has made for itself.
        """
        self._folder, self._failure = folder, failure
        self._has_warned = False

    def change(self, name: str, step: Callable[[int], object]) -> bool:
        """Call step(descriptor) on the open file, made if need be; return whether that succeeded.

        It does not while another worker changes the file, or where the disk refuses.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / name, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                step(descriptor)
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
                self._failure,
                reason=f"{error}; free space in the temporary folder, or name another with TMPDIR",
            )
