"""How much of this machine this process may use: processors and memory. Knows no setting.

A container's share is in its control group: files `cpu.max` and `memory.max` (version 2), or
`cpu.cfs_quota_us` and `memory.limit_in_bytes` (version 1), of its own group and of those above it.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def processors(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Count the processors that this process may use, rounded up, at least 1."""
    if sys.platform == "linux":
        available: float = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    for folder in _folders("cpu", proc, groups):
        with suppress(OSError, ValueError, ZeroDivisionError):
            available = min(available, _processor_share(folder))
    return max(1, math.ceil(available))


def memory_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Return the bytes of memory that this process and its children may use together."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _folders("memory", proc, groups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no number, and no limit
                available = min(available, int((folder / name).read_text()))
    return available


def _processor_share(folder: Path) -> float:
    """Read a group's quota, in processors; raises ValueError where it has none."""
    quota_file = folder / "cpu.max"
    if quota_file.exists():
        quota, period = map(int, quota_file.read_text().split())
    else:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    return quota / period if quota > 0 else math.inf


def _folders(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """List the folders of this process's group and of all above it, in versions 2 and 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = groups
        elif controller in controllers.split(","):
            root = groups / controller
        else:
            continue
        # Inside a container the path may be the host's: the group is then the mounted root.
        own = root / path.lstrip("/")
        yield from (each for each in (own, *own.parents) if each.is_relative_to(root))
