"""Measures how long a request blocks the event loop, independently of the machine's load."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

_CHUNK_BYTES = 2**16
"""uvicorn passes on at most this many bytes at once."""


class Heartbeat:
    """A task that counts the iterations of the event loop, and measures the longest one.

    Time is processor time of this process, of all threads together. It stops while other processes
    have the processor, and continues while another thread of this process holds the GIL.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._beats = 0
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            self._beats += 1
            self.longest_seconds = max(self.longest_seconds, now - last)
            last = now

    async def end(self) -> float:
        """Stop, and return the longest time between two beats in seconds."""
        last = self._beats + 2
        while self._beats < last:  # at least one whole beat after the last event before this call
            await asyncio.sleep(0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.longest_seconds


async def post(
    app: FastAPI, path: str, body: bytes, headers: Mapping[str, str], client: str = "192.0.2.1"
) -> tuple[int, bytes]:
    """Post a body as a server does, in pieces; return the response's status and body."""
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": (client, 1),
        "server": ("service", 80),
    }
    pieces = [body[at : at + _CHUNK_BYTES] for at in range(0, len(body), _CHUNK_BYTES)] or [b""]
    pieces.reverse()
    sent: list[Message] = []

    async def receive() -> Message:
        if not pieces:
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # each piece arrives in its own read
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], content


async def longest_stall(
    app: FastAPI, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[float, int, bytes]:
    """Post a body; return the longest stall in seconds, and the response's status and body."""
    heartbeat = Heartbeat()
    try:
        status, content = await post(app, path, body, headers)
    finally:
        stall = await heartbeat.end()
    return stall, status, content
