"""Several replicas of the service, each a process and a port; they are ended and started again."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from benchmarks.reliability.program import Options
from benchmarks.reliability.services import Service
from benchmarks.reliability.wire import Address

_POLL_SECONDS = 0.01


class Replicas:
    """Running replicas, all of the same model; a context manager."""

    def __init__(self, options: Options, folder: Path, port: int, count: int, *flags: str) -> None:
        """Prepare the replicas; they start with the context.

        folder: gets a folder for each start.
        port: of the first one; the others follow.
        flags: as `python -m service` takes them.
        """
        self._options, self._folder, self._flags = options, folder, flags
        self.addresses: Sequence[Address] = [("127.0.0.1", port + each) for each in range(count)]
        self._services: list[Service] = []
        self._starts = 0

    def __enter__(self) -> Self:
        try:
            for address in self.addresses:
                self._services.append(self._start(address))
            for service in self._services:
                service.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._services:
            service.server.end()

    async def end(self, index: int, number: signal.Signals, timeout: float) -> float:
        """Send a signal to a replica; return the seconds until it has ended, at most `timeout`."""
        started = time.monotonic()
        service = self._services[index]
        os.kill(service.pid, number)
        while service.server.status is None and time.monotonic() < started + timeout:
            await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - started

    async def start_again(self, index: int) -> None:
        """Start a replica that has ended, on its port, and wait until it is ready."""

        def start() -> None:
            self._services[index].server.end()
            self._services[index] = service = self._start(self.addresses[index])
            service.wait_until_ready()

        await asyncio.to_thread(start)

    def _start(self, address: Address) -> Service:
        self._starts += 1
        folder = self._folder / f"start-{self._starts}"
        folder.mkdir()
        return Service(folder, self._options.models_folder, address[1], *self._flags)
