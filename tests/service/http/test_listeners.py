"""The sockets that a service listens on, as the kernel knows them."""

import os
import socket
import stat
import sys
from pathlib import Path
from typing import Self

import pytest

from service.http import listeners


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_a_listener_that_refuses_new_connections_still_gives_those_that_wait() -> None:
    with listeners.listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as waiting:
            assert listeners.backlog(listener) == 1
            listeners.refuse_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                waiting.sendall(b"a request")
                assert accepted.recv(100) == b"a request"
        assert listeners.backlog(listener) == 0


def test_a_starting_worker_never_makes_the_listener_of_the_others_block() -> None:
    with listeners.listen("127.0.0.1", 0) as listener:
        listener.setblocking(False)  # as the workers that already serve have it
        as_a_worker_gets_it = socket.socket(fileno=os.dup(listener.fileno()))
        turned_on: list[bool] = []

        class Watched(socket.socket):
            def dup(self) -> Self:
                duplicate = super().dup()
                turned_on.append(os.get_blocking(listener.fileno()))
                return duplicate

        with Watched(fileno=as_a_worker_gets_it.detach()) as watched:
            for duplicate in listeners.duplicates(watched, 3):
                duplicate.close()
        assert turned_on == [False] * 3


def test_the_control_socket_is_for_its_own_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listeners.listen_for_control(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="in use"):
            listeners.listen_for_control(path)
    with listeners.listen_for_control(path):  # what an ended service left behind makes room
        assert path.exists()


def test_a_folder_that_others_may_write_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    folder.mkdir(mode=0o777)
    listeners.make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError):
        listeners.make_private_folder(tmp_path / "link")
