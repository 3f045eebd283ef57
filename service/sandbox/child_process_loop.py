"""The sandbox process's end of the socket: receives tasks and sends results. Decodes nothing."""

import signal
import socket

from service.sandbox.child_process_messages import (
    HEADER,
    UNRESERVED_BYTES,
    Task,
    decode_task,
    encode_message,
)
from service.sandbox.decoding_tasks import run_task


class ServiceConnection:
    """The connection of a sandbox process to the service."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive_task(self) -> tuple[Task, bytes] | None:
        """Wait for a task and its body; None if the service has closed the connection."""
        header = self._receive(HEADER.size)
        if header is None:
            return None
        text_length, data_length = HEADER.unpack(header)
        text, data = self._receive(text_length), self._receive(data_length)
        if text is None or data is None:
            return None
        task = decode_task(text)
        # The kernel ends this process at the limit, even if the service is gone by then.
        signal.setitimer(signal.ITIMER_PROF, task.seconds)
        return task, data

    def reserve(self, needed: int, _pixels: int) -> None:
        """Wait until the service has reserved `needed` bytes of memory; few need no reservation."""
        if needed <= UNRESERVED_BYTES:
            return
        self.send({"needs": needed})
        if self._receive(1) is None:
            raise ConnectionError("the service has closed the connection")

    def send(self, content: object, data: bytes | memoryview = b"") -> None:
        """Send a message: JSON content and bytes."""
        self._connection.sendall(encode_message(content, len(data)))
        self._connection.sendall(data)

    def _receive(self, length: int) -> bytes | None:
        """Receive exactly `length` bytes; None if the service has closed the connection."""
        data = self._connection.recv(length, socket.MSG_WAITALL) if length else b""
        return data if len(data) == length else None


def run_tasks(connection: ServiceConnection) -> None:
    """Report that this process is ready, then run one task after the other."""
    connection.send({"ready": True})
    while (received := connection.receive_task()) is not None:
        content, data = run_task(*received, connection.reserve)
        del received  # the body may be large
        connection.send(content, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
