"""Where the states of drift tests are kept: in memory, or in files that several workers share.

Knows no test: a state is a string of bytes.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from service.observability.files_shared_by_workers import SharedFiles, shared_folder

_PREFIX = "drift-"
_MAX_BYTES = 2**16


class DriftStates:
    """States by key, until the service ends.

    Several workers share one test of each version, since it is the joint stream that is tested: W
    tests of a W-th of the stream each would need W times as many images, and a smaller level each.
    """

    def __init__(self, folder: Path | None) -> None:
        """Read nothing yet; folder: shared by the workers, None for a single process."""
        self._files = None if folder is None else SharedFiles(folder, "drift is not tested")
        self._in_memory: dict[str, bytes] = {}

    @classmethod
    def of_service(cls) -> Self:
        """Keep them beside the metrics' files where there are several workers, else in memory."""
        return cls(shared_folder())

    def update(self, key: str, step: Callable[[bytes], bytes]) -> bool:
        """Replace a state by step(state); return whether that was possible now.

        It is not while another worker does so, which takes less than a millisecond, and never
        waits for it: it may have been stopped.

        key: letters, digits and the characters `-`, `.` and `_`.
        step: is given the state, empty at first, and returns the new one; it may be called in vain.
        """
        if self._files is None:
            self._in_memory[key] = step(self._in_memory.get(key, b""))
            return True
        return self._files.change(
            f"{_PREFIX}{key}",
            lambda file: os.pwrite(file, step(os.pread(file, _MAX_BYTES, 0)), 0),
        )
