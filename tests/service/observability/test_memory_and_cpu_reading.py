"""Memory and processor time of this process and its children."""

import subprocess
import sys
import time
from pathlib import Path

from service.observability.memory_and_cpu_reading import ProcessUsage


def test_memory_of_a_child_process_counts() -> None:
    usage = ProcessUsage()
    alone, _ = usage.read()
    with subprocess.Popen(
        [sys.executable, "-c", "data = b'x' * 10**8; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together, _ = usage.read()
        child.kill()
    assert together - alone > 90_000


def test_processor_time_is_that_since_the_last_call() -> None:
    usage = ProcessUsage()
    started = time.process_time()
    while time.process_time() - started < 0.05:
        pass
    _, spent = usage.read()
    assert spent >= 40
    assert usage.read()[1] < spent


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert ProcessUsage(tmp_path).read() == (0, 0)
