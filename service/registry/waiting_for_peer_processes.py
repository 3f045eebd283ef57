"""Waits until all peers have followed a change, and shows them that this process lives.

Knows no model.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from service.errors import DeadlineError, NotReadyError
from service.registry.file_access_timeout import Disk
from service.registry.peer_process_records import HEARTBEAT_SECONDS, Peer
from service.registry.wanted_versions import Rollouts

_CHECK_SECONDS = 0.05
_TIMEOUT_SECONDS = 30.0
"""How long a change waits until all peers have applied it."""
_MOST_NAMES = 3
"""How many peers an error names."""


class PeerFollowing:
    """What this process tells its peers, and asks of them."""

    def __init__(self, rollouts: Rollouts, disk: Disk) -> None:
        """Tell and ask nothing yet."""
        self._rollouts, self._disk = rollouts, disk

    async def run(self) -> None:
        """Show that this process lives, until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            with suppress(DeadlineError, NotReadyError, OSError):
                await self._disk.call(self._rollouts.beat)

    async def wait_until_followed(self, name: str) -> None:
        """Wait until every live peer has applied the last change, of a model.

        Raises:
            DeadlineError: one has not in time, or cannot load a version that the change names.
        """
        lagging: Sequence[Peer] = ()
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while lagging := await self._disk.call(self._rollouts.lagging_peers):
                    await asyncio.sleep(_CHECK_SECONDS)
        except TimeoutError:
            raise DeadlineError(
                f"The change is made, but {_names(lagging)} did not follow within "
                f"{_TIMEOUT_SECONDS:g} seconds; the log may say why."
            ) from None
        without = await self._disk.call(self._rollouts.peers_without_versions, name)
        if without:
            missing = {number for each in without for number in each.record.missing[name]}
            raise DeadlineError(
                f"The change is made, but {_names(without)} cannot load version "
                f"{' and '.join(map(str, sorted(missing)))} of {name}; the log says why."
            )


def _names(peers: Sequence[Peer]) -> str:
    """Name some peers: host and process."""
    first = [str(each) for each in peers[:_MOST_NAMES]]
    if len(peers) > _MOST_NAMES:
        first.append(f"{len(peers) - _MOST_NAMES} more")
    return " and ".join(first) or "one replica"
