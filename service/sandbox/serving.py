"""A sandbox process's end of the socket: tasks in, answers out. Knows no task's meaning."""

import signal
import socket

from service.sandbox.messages import FREE_BYTES, HEADER, Task, message, read_task
from service.sandbox.tasks import perform


class Link:
    """The socket to the service."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive_task(self) -> tuple[Task, bytes] | None:
        """Wait for a task and the body it is about; None: there will be no more."""
        header = self._receive(HEADER.size)
        if header is None:
            return None
        text_length, data_length = HEADER.unpack(header)
        text, data = self._receive(text_length), self._receive(data_length)
        if text is None or data is None:
            return None
        task = read_task(text)
        # The kernel ends this process in time, whatever it does then and whoever is gone.
        signal.setitimer(signal.ITIMER_PROF, task.seconds)
        return task, data

    def ask(self, needed: int, _pixels: int) -> None:
        """Wait until the service has room for so many bytes of memory; a few need no asking."""
        if needed <= FREE_BYTES:
            return
        self.send({"needs": needed})
        if self._receive(1) is None:
            raise ConnectionError("nobody waits for the answer")

    def send(self, content: object, data: bytes | memoryview = b"") -> None:
        """Send a message."""
        self._connection.sendall(message(content, len(data)))
        self._connection.sendall(data)

    def _receive(self, length: int) -> bytes | None:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            received = self._connection.recv_into(view)
            if not received:
                return None
            view = view[received:]
        return bytes(data)


def serve(link: Link) -> None:
    """Do one task after the other; say first that this process is there."""
    link.send({"ready": True})
    while (given := link.receive_task()) is not None:
        content, data = perform(*given, link.ask)
        del given  # the body may be large
        link.send(content, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
