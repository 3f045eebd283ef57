import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import mark_process_dead

from service.observability.prometheus_process_metrics import (
    WorkerProcesses,
    this_process,
    workers_of,
)

NAMES = {
    "process_cpu_seconds",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}


@pytest.fixture
def child() -> Iterator[int]:
    """The process id of a process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_each_worker_has_every_process_metric_under_its_process_id(child: int) -> None:
    found = {each.name: each for each in WorkerProcesses(lambda: {os.getpid(), child}).collect()}
    assert set(found) == NAMES
    for metric in found.values():
        assert {each.labels["pid"] for each in metric.samples} == {str(os.getpid()), str(child)}
    resident = found["process_resident_memory_bytes"].samples
    memory = {each.labels["pid"]: each.value for each in resident}
    assert memory[str(os.getpid())] > memory[str(child)] > 0


def test_a_process_that_has_ended_has_no_metrics() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert list(WorkerProcesses(lambda: {ended.pid}).collect()) == []


def test_a_service_of_one_process_shows_itself() -> None:
    registry = CollectorRegistry()
    registry.register(WorkerProcesses(this_process))
    assert f'process_open_fds{{pid="{os.getpid()}"}}' in generate_latest(registry).decode()


def test_workers_are_those_whose_live_gauges_are_in_the_folder(
    tmp_path: Path,
) -> None:
    code = (
        "from prometheus_client import Counter, Gauge\n"
        "Counter('answered', '.').inc()\n"
        "for mode in ('livesum', 'livemax'): Gauge(mode, '.', multiprocess_mode=mode).set(1)\n"
        "import os; print(os.getpid())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    pids = {
        int(subprocess.check_output([sys.executable, "-c", code], env=environment))
        for _ in range(2)
    }
    assert workers_of(tmp_path) == pids
    ended = pids.pop()
    mark_process_dead(ended, str(tmp_path))  # type: ignore[no-untyped-call]
    assert workers_of(tmp_path) == pids
