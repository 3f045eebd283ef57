"""The share of the machine that a container leaves, read from folders like the kernel's."""

import os
from pathlib import Path

import pytest

from service.resources import memory_bytes, processors

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def folders(place: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc = write(place / "proc", {"self/cgroup": cgroup})
    return proc, write(place / "groups", files)


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}),
        ("0::/a/b\n", {"cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000"}),
        ("0::/of/the/host\n", {"cpu.max": "20000 100000\n"}),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_a_container_of_one_processor_has_one(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    assert processors(*folders(tmp_path, cgroup, files)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000\n"},
        {"cpu.max": "6400000 100000\n"},
        {"cpu.max": "none"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_without_a_quota_the_affinity_counts(tmp_path: Path, files: dict[str, str]) -> None:
    places = folders(tmp_path, "0::/\n4:cpu:/\n", files)
    assert processors(*places) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "2147483648\n"}, 2**31),
        ("0::/a\n", {"memory.max": "3000", "a/memory.max": "max"}, 3000),
        ("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": "4096"}, 4096),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE_BYTES),
        ("0::/\n", {}, MACHINE_BYTES),
    ],
)
def test_the_smallest_limit_of_memory_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert memory_bytes(*folders(tmp_path, cgroup, files)) == expected


def test_this_machine_has_some_of_both() -> None:
    assert processors() >= 1
    assert memory_bytes() > 2**20
