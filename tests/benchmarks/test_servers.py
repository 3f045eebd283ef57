import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.services import Service
from benchmarks.serving.servers import Command, Server, ServerFailedError
from tests.conftest import ROOT

# Starts a child in a session of its own, then ends before it.
ORPHANING = """
import subprocess, sys
waiting = "import signal; print(flush=True); signal.pause()"
command = [sys.executable, "-c", waiting]
child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
"""

WAITING = "import signal; signal.pause()"

BENCHMARK = """
import signal, sys
from pathlib import Path
from benchmarks.machine import end_like_ctrl_c
from benchmarks.serving.servers import Command, Server

end_like_ctrl_c()
with Server(Command([sys.executable, "-c", "import signal; signal.pause()"]), "", Path()) as server:
    print(server.pid, flush=True)
    signal.pause()
"""

PROGRAMS = [
    file
    for file in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "__main__" in file.read_text() and file.name != "ray_cluster_process.py"  # has its own
]
"""The programs; those that start others have to end them."""
STARTERS = {"Service", "connected", "running_service", "service_process", "subprocess", "train"}
IMPORTS = (ast.Import, ast.ImportFrom)
ENDS = re.compile(r"\bend_like_ctrl_c\(\)|\bread_flags\(|^    sys\.exit\(run\(", re.MULTILINE)


def test_server_is_suspended_resumed_and_ended(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", WAITING]), "", tmp_path) as server:
        (process,) = server.processes()
        server.suspend()
        os.waitid(os.P_PID, process, os.WSTOPPED)
        server.resume()
        os.waitid(os.P_PID, process, os.WCONTINUED)
        assert server.proportional_memory() > 0
        server.require_running()
    assert not Path(f"/proc/{process}").exists()


def test_a_suspended_server_can_be_ended(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", WAITING]), "", tmp_path) as server:
        server.suspend()
    assert not server.processes()


def test_server_finds_and_ends_orphaned_processes(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", ORPHANING]), "", tmp_path) as server:
        assert server.wait() == 0
        assert len(server.processes()) == 1
    assert not server.processes()


def test_benchmark_that_gets_sigterm_ends_what_it_has_started(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", BENCHMARK],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as benchmark:
        assert benchmark.stdout is not None
        server = int(benchmark.stdout.readline())
        benchmark.send_signal(signal.SIGTERM)
    assert benchmark.returncode == -signal.SIGINT
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_program_that_starts_others_takes_sigterm_like_ctrl_c(file: Path) -> None:
    text = file.read_text()
    imports = (each for each in ast.walk(ast.parse(text)) if isinstance(each, IMPORTS))
    imported = {alias.name for each in imports for alias in each.names}
    assert not imported & STARTERS or ENDS.search(text)


def test_service_at_a_free_port_is_ready_and_is_asked_by_its_control_listener(
    tmp_path: Path, models_folder: Path
) -> None:
    flags = ("--control-port", "0", "--allowed-hosts", "127.0.0.1")
    with Service(tmp_path, models_folder, 0, *flags) as service:
        assert service.is_ready()
        assert service.control_address is not None
        assert 0 < service.address[1] != service.control_address[1] > 0
        process = service.pid
    assert not Path(f"/proc/{process}").exists()


def test_service_at_a_free_port_that_ends_before_it_is_ready_is_reported_with_its_log(
    tmp_path: Path, models_folder: Path
) -> None:
    with (
        pytest.raises(ServerFailedError, match="--no-such-option"),
        Service(tmp_path, models_folder, 0, "--no-such-option"),
    ):
        raise AssertionError("it has started")


def test_require_running_raises_with_the_end_of_the_log(tmp_path: Path) -> None:
    command = Command([sys.executable, "-c", "raise SystemExit('no model')"])
    with Server(command, "", tmp_path) as server:
        assert server.wait() == 1
        with pytest.raises(ServerFailedError, match="no model"):
            server.require_running()
