"""`python -m service.sandbox.process BYTES`: reads bodies that may be dear, one after the other.

The service starts it with a socket as its standard input, and kills it when a body takes too long.
It bounds its own memory, so that a body which takes too much of it ends this process at most.
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

_NICE = 5
"""The event loop, which answers everybody, goes before the reading of one large body."""
_MOST_FILES = 16


def main() -> int:
    """Do what the socket asks for, until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who has started it ends it, too
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError):  # it may not be allowed, and is a courtesy
        os.nice(_NICE)
    from service.sandbox.serving import Link, serve

    _limit(int(sys.argv[1]))
    with socket.socket(fileno=os.dup(0)) as connection, suppress(ConnectionError):
        serve(Link(connection))
    return 0


def _limit(more_bytes: int) -> None:
    """Bound what this process may take: memory beside what it has by now, and files."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_FSIZE: 0,
    }
    with suppress(OSError):  # no Linux
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + more_bytes
    for kind, most in limits.items():
        with suppress(ValueError):  # it is lower already
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    sys.exit(main())
