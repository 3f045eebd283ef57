"""The priority of threads that work behind those which serve requests."""

import os
import sys
import threading
from contextlib import suppress

_NICE = 5
"""The niceness; at a higher one a thread could hold the GIL while it waits for the processor."""


def lower_thread_priority() -> None:
    """Lower the priority of the current thread below that of the threads that serve requests.

    It cannot be raised again, and threads that the current one starts inherit it.
    """
    if sys.platform == "linux":  # elsewhere this would change the whole process
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
