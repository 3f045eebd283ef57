"""The processors and memory that this process may use. Knows no setting.

The limits of a container are in its control groups (cgroups): files `cpu.max` and `memory.max`
(version 2), or `cpu.cfs_quota_us` and `memory.limit_in_bytes` (version 1), of its own group and of
the groups above it.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_processors(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return how many processors this process may use, rounded up, at least 1."""
    if sys.platform == "linux":
        available: float = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    for folder in _cgroup_folders("cpu", proc, cgroups):
        with suppress(OSError, ValueError, ZeroDivisionError):
            available = min(available, _processor_quota(folder))
    return max(1, math.ceil(available))


def available_memory_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return how many bytes this process and its child processes may use together."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroup_folders("memory", proc, cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no number and means no limit
                available = min(available, int((folder / name).read_text()))
    return available


def _processor_quota(folder: Path) -> float:
    """Read a group's quota, in processors; raises ValueError if it has none."""
    quota_file = folder / "cpu.max"
    if quota_file.exists():
        quota, period = map(int, quota_file.read_text().split())
    else:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    return quota / period if quota > 0 else math.inf


def _cgroup_folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folders of this process's group and the groups above it, of both versions."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = cgroups
        elif controller in controllers.split(","):
            root = cgroups / controller
        else:
            continue
        # Inside a container the path may be that on the host, which does not exist here; the
        # container's group is then mounted as the root.
        own = root / path.lstrip("/")
        yield from (each for each in (own, *own.parents) if each.is_relative_to(root))
