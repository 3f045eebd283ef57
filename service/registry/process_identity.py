"""Names a process among those of several hosts, so that files can say whose they are.

Containers on one machine share its boot id, and a process has another number in each of them, so a
host is here a boot, a name and a namespace of processes. Where there is no /proc, as on macOS, each
process counts as a host of its own.
"""

import hashlib
import os
import secrets
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from service.observability.process_stat import stat_fields

_PROC = Path("/proc")
_STATE, _START_TIME = 0, 19
"""Places among `stat_fields`."""
_ENDED_STATES = "ZX"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of some host; as text it is a part of file names."""

    host: str
    """16 hexadecimal digits."""
    pid: int
    """In its own namespace, where this number may be that of another process later."""
    started: int
    """When it started, clock ticks since the boot; 0 where there is no /proc."""
    nonce: str
    """8 hexadecimal digits, at random: tells two services in one process apart, as in tests."""

    def __str__(self) -> str:
        """Return the identity as text."""
        return f"{self.name}-{self.nonce}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the identity that a text is; None if it is none."""
        parts = text.split("-")
        if len(parts) != 4 or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]), parts[3])

    @property
    def name(self) -> str:
        """The identity without its random part."""
        return f"{self.host}-{self.pid}-{self.started}"

    def has_ended(self) -> bool:
        """Return whether this process of this host has ended; its number may be used again."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # another user's, which /proc may hide
            pass
        fields = stat_fields(self.pid)
        if not fields:
            return False
        return fields[_STATE] in _ENDED_STATES or int(fields[_START_TIME]) != self.started


def this_process() -> ProcessIdentity:
    """Return an identity of this process, with another random part each time."""
    pid = os.getpid()
    return ProcessIdentity(_host(), pid, _start_of(pid), secrets.token_hex(4))


def this_hostname() -> str:
    """Return the name of this host, for people."""
    return socket.gethostname()


@cache
def _start_of(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[_START_TIME]) if fields else 0


@cache
def _host() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return secrets.token_hex(8)
    # With the name: machines that were started from one snapshot have the same boot id.
    text = f"{boot}/{namespace}/{this_hostname()}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
