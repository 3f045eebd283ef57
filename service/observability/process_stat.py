"""The fields of /proc/PID/stat, see proc_pid_stat(5). Knows what none of them means."""

from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def stat_fields(pid: int | str, proc: Path = _PROC) -> list[str]:
    """Return the fields behind the command's name; none if they cannot be read.

    pid: of the process; `self` for this one.
    """
    with suppress(OSError):
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []
