"""A sandbox process as the service holds it: started, spoken with, killed. Knows no task."""

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

from service.sandbox.messages import HEADER, MAX_JSON_BYTES

Bytes = NDArray[np.uint8]

_MODULE = "service.sandbox.process"
_ENVIRONMENT = {
    # One thread, and memory that goes back to the system when it is let go.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
    "PYTHONDONTWRITEBYTECODE": "1",
}
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "TZ")
_ROOT = Path(__file__).parents[2]
_SOCKET_BYTES = 2**20
_STEP_BYTES = 2**18
"""Sent or received before the event loop turns to others."""
_END_SECONDS = 1
"""In which a process is gone that has closed its socket."""


class SandboxProcess:
    """A sandbox process, and the socket to it."""

    def __init__(self, popen: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._popen = popen
        self._connection = connection
        self.is_alive = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @classmethod
    def start(cls, most_bytes: int) -> "SandboxProcess":
        """Start one; raises OSError."""
        ours, theirs = socket.socketpair()
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            with theirs:
                popen = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", _MODULE, str(most_bytes)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd=_ROOT,
                    env=kept | _ENVIRONMENT,
                    process_group=0,  # Ctrl-C is for the service, which ends its processes
                )
        except BaseException:
            ours.close()
            raise
        for end in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # most bodies go at once
            ours.setsockopt(socket.SOL_SOCKET, end, _SOCKET_BYTES)
        ours.setblocking(False)
        return cls(popen, ours)

    async def send(self, data: bytes) -> None:
        """Send bytes; raises OSError: the process has ended."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        for start in range(0, len(view), _STEP_BYTES):
            if start:
                await asyncio.sleep(0)  # what goes at once does not wait by itself
            await loop.sock_sendall(self._connection, view[start : start + _STEP_BYTES])

    async def receive(self, most_bytes: int) -> tuple[dict[str, Any], Bytes]:
        """Receive a message; raises ConnectionError: the process has ended, or says too much."""
        text_length, data_length = HEADER.unpack((await self._receive(HEADER.size)).tobytes())
        if text_length > MAX_JSON_BYTES or data_length > most_bytes:
            raise ConnectionError("The sandbox process says more than it was asked for.")
        content = orjson.loads((await self._receive(text_length)).tobytes())
        return content, await self._receive(data_length)

    async def _receive(self, length: int) -> Bytes:
        loop = asyncio.get_running_loop()
        data = np.empty(length, np.uint8)
        view = data.data
        while view:
            received = await loop.sock_recv_into(self._connection, view[:_STEP_BYTES])
            if not received:
                raise ConnectionResetError("The sandbox process has ended.")
            view = view[received:]
            if view:
                await asyncio.sleep(0)
        return data

    def took_long(self) -> bool:
        """Wait for the end of one that ends by itself; tell whether its time was over."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_SECONDS)
        return self._popen.returncode in (-signal.SIGPROF, -signal.SIGXCPU)

    def kill(self) -> None:
        """End it, at once."""
        self.is_alive = False
        self._connection.close()
        self._popen.kill()

    def reap(self) -> None:
        """Wait until it is gone; it has been killed."""
        self._popen.wait()
