"""Tests of the sockets that the service listens on, with real sockets."""

import os
import socket
import stat
import sys
from pathlib import Path
from typing import Self

import pytest

from service.http import listeners


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_listener_that_refuses_new_connections_still_accepts_its_backlog() -> None:
    with listeners.listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as waiting:
            assert listeners.backlog_length(listener) == 1
            listeners.refuse_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                waiting.sendall(b"a request")
                assert accepted.recv(100) == b"a request"
        assert listeners.backlog_length(listener) == 0


def test_duplicate_never_makes_the_shared_listener_block() -> None:
    with listeners.listen("127.0.0.1", 0) as listener:
        listener.setblocking(False)  # as the workers that already serve have set it
        worker_listener = socket.socket(fileno=os.dup(listener.fileno()))
        blocking_after_dup: list[bool] = []

        class RecordingSocket(socket.socket):
            def dup(self) -> Self:
                duplicate = super().dup()
                blocking_after_dup.append(os.get_blocking(listener.fileno()))
                return duplicate

        with RecordingSocket(fileno=worker_listener.detach()) as recording:
            for duplicate in listeners.duplicate(recording, 3):
                duplicate.close()
        assert blocking_after_dup == [False] * 3


def test_control_socket_is_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listeners.listen_for_control(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="in use"):
            listeners.listen_for_control(path)
    with listeners.listen_for_control(path):  # replaces the socket of an ended service
        assert path.exists()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has not both")
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_listener_on_every_ipv6_address_takes_ipv4_connections_too(host: str) -> None:
    with listeners.listen(host, 0) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port)).close()
