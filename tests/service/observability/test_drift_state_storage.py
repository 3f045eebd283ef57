"""Where the drift tests keep their states: in memory, or in a folder that workers share."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.observability.drift_state_storage import DriftStates

KEY = "digits-1-0a1b"


def append(states: DriftStates, more: bytes, key: str = KEY) -> bool:
    return states.update(key, lambda state: state + more)


def read(states: DriftStates, key: str = KEY) -> bytes:
    seen = []

    def step(state: bytes) -> bytes:
        seen.append(state)
        return state

    assert states.update(key, step)
    return seen[0]


@pytest.mark.parametrize("is_shared", [False, True])
def test_state_is_empty_at_first_and_kept_by_key(tmp_path: Path, is_shared: bool) -> None:
    states = DriftStates(tmp_path if is_shared else None)
    for piece in (b"a", b"b"):
        assert append(states, piece)
    assert read(states) == b"ab"
    assert read(states, "cats-1-0a1b") == b""


def test_two_processes_of_a_folder_continue_one_state(tmp_path: Path) -> None:
    one, other = DriftStates(tmp_path), DriftStates(tmp_path)
    assert append(one, b"1")
    assert append(other, b"2")
    assert read(one) == b"12"


def test_state_that_another_process_holds_is_not_waited_for(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    assert append(states, b"1")
    (file,) = tmp_path.iterdir()
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not append(states, b"2")
    assert append(states, b"3")
    assert file.read_bytes() == b"13"


def test_full_disk_is_logged_once_and_loses_no_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = DriftStates(tmp_path)
    assert append(states, b"1")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, capture_logs() as log:
        patched.setattr(os, "pwrite", full)
        assert not append(states, b"2")
        assert not append(states, b"3")
    (line,) = log
    assert line["event"] == "drift is not tested"
    assert "No space left on device" in line["reason"]
    assert read(states) == b"1"
