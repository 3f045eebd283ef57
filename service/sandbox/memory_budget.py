"""Memory that several jobs share: each reserves a part, first come, first served. Knows no job."""

import asyncio
from collections import deque


class MemoryBudget:
    """A number of bytes, of which parts are reserved and released. For one event loop."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, needed: int) -> None:
        """Wait for `needed` free bytes and reserve them; raises MemoryError above the total."""
        if needed > self.total_bytes:
            raise MemoryError
        if not self._waiters and needed <= self.free_bytes:
            self.free_bytes -= needed
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = needed, granted
        self._waiters.append(waiter)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.free_bytes += needed
            else:
                self._waiters.remove(waiter)
            self._grant()
            raise

    def release(self, reserved: int) -> None:
        """Return reserved bytes, and grant the reservations that fit now."""
        self.free_bytes += reserved
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self._waiters[0][0] <= self.free_bytes:
            needed, granted = self._waiters.popleft()
            if not granted.done():
                self.free_bytes -= needed
                granted.set_result(None)
