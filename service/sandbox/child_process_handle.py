"""The parent's handle of a sandbox process: starts it, exchanges messages, kills it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.sandbox.child_process_messages import HEADER, MAX_JSON_BYTES

Bytes = NDArray[np.uint8]

_MODULE = "service.sandbox.child_process_main"
_ENVIRONMENT = {
    # One thread, and an allocator that returns released memory to the system, but for the size of
    # the usual photograph: its pages would cost a quarter of the time to decode the next one.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(6 * 2**20),
    "PYTHONDONTWRITEBYTECODE": "1",
}
_INHERITED_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "TZ")
_ROOT = Path(__file__).parents[2]
_SOCKET_BYTES = 2**20
_CHUNK_BYTES = 2**18
"""Sent or received before the event loop runs other callbacks."""
_EXIT_TIMEOUT_SECONDS = 1
"""How long to wait for the end of a process that has closed its socket."""


class SandboxProcess:
    """A running sandbox process and the socket to it."""

    def __init__(self, popen: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._popen = popen
        self._connection = connection
        self.is_alive = True

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @classmethod
    def start(cls, max_memory_bytes: int) -> "SandboxProcess":
        """Start a process with a limit of memory for its work; raises OSError."""
        parent_socket, child_socket = socket.socketpair()
        inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        try:
            with child_socket:
                popen = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", _MODULE, str(max_memory_bytes)],
                    stdin=child_socket.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd=_ROOT,
                    env=inherited | _ENVIRONMENT,
                    process_group=0,  # Ctrl-C reaches the service alone, which kills its processes
                )
        except BaseException:
            parent_socket.close()
            raise
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # most bodies fit in the buffer
            parent_socket.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        parent_socket.setblocking(False)
        return cls(popen, parent_socket)

    async def send(self, data: bytes) -> None:
        """Send bytes; raises OSError if the process has ended."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            if start:
                await asyncio.sleep(0)  # sock_sendall does not yield if the buffer takes the chunk
            await loop.sock_sendall(self._connection, view[start : start + _CHUNK_BYTES])

    async def receive(self, max_answer_bytes: int) -> tuple[dict[str, Any], Bytes]:
        """Receive a message: its JSON content and the bytes after it.

        Raises:
            ConnectionError: the process has ended, or its message is too long.
        """
        text_length, data_length = HEADER.unpack((await self._receive(HEADER.size)).tobytes())
        if text_length > MAX_JSON_BYTES or data_length > max_answer_bytes:
            raise ConnectionError("The message of the sandbox process is too long.")
        content = orjson.loads((await self._receive(text_length)).tobytes())
        return content, await self._receive(data_length)

    async def _receive(self, length: int) -> Bytes:
        loop = asyncio.get_running_loop()
        data = np.empty(length, np.uint8)
        view = data.data
        while view:
            received = await loop.sock_recv_into(self._connection, view[:_CHUNK_BYTES])
            if not received:
                raise ConnectionResetError("The sandbox process has ended.")
            view = view[received:]
            if view:
                await asyncio.sleep(0)
        return data

    def exceeded_cpu_time(self) -> bool:
        """Wait for the end of the process, and return True if the kernel ended it for its time."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_EXIT_TIMEOUT_SECONDS)
        return self._popen.returncode in (-signal.SIGPROF, -signal.SIGXCPU)

    def kill(self) -> None:
        """Kill the process at once."""
        self.is_alive = False
        self._connection.close()
        self._popen.kill()

    def reap(self) -> None:
        """Wait for the end of the killed process, so that it leaves no zombie."""
        self._popen.wait()
