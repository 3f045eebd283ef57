"""Tests of the limits of a container, read from folders like the kernel's."""

import os
from pathlib import Path

import pytest

from model.container_resources import available_memory_bytes, available_processors

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def proc_and_cgroup_folders(folder: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc = write_files(folder / "proc", {"self/cgroup": cgroup})
    return proc, write_files(folder / "groups", files)


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
def test_available_processors_is_one_in_a_container_of_one(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    assert available_processors(*proc_and_cgroup_folders(tmp_path, cgroup, files)) == 1


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
def test_available_processors_is_the_affinity_without_a_quota(
    tmp_path: Path, files: dict[str, str]
) -> None:
    folders = proc_and_cgroup_folders(tmp_path, "0::/\n4:cpu:/\n", files)
    assert available_processors(*folders) == len(os.sched_getaffinity(0))


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
def test_available_memory_bytes_is_the_smallest_limit(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert available_memory_bytes(*proc_and_cgroup_folders(tmp_path, cgroup, files)) == expected


def test_this_machine_has_processors_and_memory() -> None:
    assert available_processors() >= 1
    assert available_memory_bytes() > 2**20
