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


def test_a_server_is_held_let_go_and_ended(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", WAITING]), "", tmp_path) as server:
        (process,) = server.processes()
        server.hold()
        os.waitid(os.P_PID, process, os.WSTOPPED)
        server.let_go()
        os.waitid(os.P_PID, process, os.WCONTINUED)
        assert server.proportional_memory() > 0
        server.require_running()
    assert not Path(f"/proc/{process}").exists()


def test_a_server_that_is_held_can_be_ended(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", WAITING]), "", tmp_path) as server:
        server.hold()
    assert not server.processes()


def test_orphans_are_found_and_ended(tmp_path: Path) -> None:
    with Server(Command([sys.executable, "-c", ORPHANING]), "", tmp_path) as server:
        assert server.wait() == 0
        assert len(server.processes()) == 1
    assert not server.processes()


def test_a_server_that_ended_by_itself_says_its_last_words(tmp_path: Path) -> None:
    command = Command([sys.executable, "-c", "raise SystemExit('no model')"])
    with Server(command, "", tmp_path) as server:
        assert server.wait() == 1
        with pytest.raises(ServerFailedError, match="no model"):
            server.require_running()
