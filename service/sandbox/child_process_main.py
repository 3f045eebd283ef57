"""`python -m service.sandbox.child_process_main BYTES`: the program of a sandbox process.

The service starts it with a socket as standard input, and kills it when a body takes too long. The
process limits its own memory to BYTES more than it takes at start, so that a body which needs more
ends no other process.
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

_NICE = 5
"""Lowers the priority, so that decoding a large body does not slow the event loop down."""
_MAX_FILES = 16


def main() -> int:
    """Run the tasks that arrive on the socket, until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the service ends its sandbox processes itself
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError):  # the priority is not essential, and may not be changeable
        os.nice(_NICE)
    from service.sandbox.child_process_loop import ServiceConnection, run_tasks

    _limit_resources(int(sys.argv[1]))
    with socket.socket(fileno=os.dup(0)) as connection, suppress(ConnectionError):
        run_tasks(ServiceConnection(connection))
    return 0


def _limit_resources(more_bytes: int) -> None:
    """Limit the resources of this process: memory beyond its current size, and open files."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_FSIZE: 0,
    }
    with suppress(OSError):  # only Linux has /proc/self/statm
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + more_bytes
    for kind, limit in limits.items():
        with suppress(ValueError):  # the limit is lower already
            resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
