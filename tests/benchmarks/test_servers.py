import os
import sys
from pathlib import Path

import pytest

from benchmarks.serving.servers import Command, Server, ServerFailedError

# Starts a child in a session of its own, then ends before it.
ORPHANING = """
import subprocess, sys
waiting = "import signal; print(flush=True); signal.pause()"
command = [sys.executable, "-c", waiting]
child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
"""

WAITING = "import signal; signal.pause()"


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


def test_require_running_raises_with_the_end_of_the_log(tmp_path: Path) -> None:
    command = Command([sys.executable, "-c", "raise SystemExit('no model')"])
    with Server(command, "", tmp_path) as server:
        assert server.wait() == 1
        with pytest.raises(ServerFailedError, match="no model"):
            server.require_running()
