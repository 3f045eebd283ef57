"""Changes which version serves while clients send: commands, the versions that tell them apart."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.reliability.version_watch import Message, Serving, version_and_outputs
from benchmarks.reliability.wire import Address, Response, exchange, request

SHARE = 0.25
"""The canary's share of the requests."""
_SEED = 7
_SETTLE_SECONDS = 0.1


class Commands:
    """Sends commands, and remembers which versions they made serve and how long they took."""

    def __init__(self, replicas: Sequence[Address]) -> None:
        """Prepare: nothing is sent yet, and version 1 of digits serves."""
        self._replicas = replicas
        self._next = 0
        self.history = [Serving("1", None, 0.0, 0.0, time.monotonic())]
        self.seconds: dict[str, list[float]] = {}
        self.answered = 0
        self.refusals: list[str] = []

    async def serve(
        self, command: str, stable: str, canary: str | None = None, living: int | None = None
    ) -> None:
        """Change which versions of digits serve; living: how many replicas may get the command."""
        began = time.monotonic()
        await self.send("digits", command, living)
        self.history.append(Serving(stable, canary, SHARE, began, time.monotonic()))

    async def send(self, model: str, command: str, living: int | None = None) -> None:
        """Send a command to the next replica."""
        self._next += 1
        address = self._replicas[self._next % (living or len(self._replicas))]
        message = request("POST", f"/models/{model}/{command}", b"")
        began = time.monotonic()
        response = await asyncio.to_thread(exchange, address, message, timeout=60)
        name = command.partition("?")[0]
        self.seconds.setdefault(name, []).append(time.monotonic() - began)
        if response is None or response.status != 200:
            self.refusals.append(f"{name}: {None if response is None else response.body!r}")
        else:
            self.answered += 1

    async def settle(self) -> None:
        """Let clients send for a moment."""
        await asyncio.sleep(_SETTLE_SECONDS)


def train_second_version(models: Path, runs: Path, *flags: str) -> None:
    """Train digits/2 from another seed beside digits/1; flags: more of `python -m training`."""
    train = (sys.executable, "-m", "training", "--data", "digits", "--seed", str(_SEED), *flags)
    with (runs / "log.txt").open("wb") as stream:
        subprocess.run(  # noqa: S603
            [*train, "--output", str(models), "--runs", str(runs)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=True,
        )


async def outputs_of_both_versions(
    commands: Commands, addresses: Sequence[Address], messages: Sequence[Message]
) -> Mapping[tuple[int, str], object]:
    """Return the right outputs by image and version; version 1 serves at the end.

    Raises:
        SystemExit: replicas differ, or the versions answer the same.
    """
    right: dict[tuple[int, str], object] = {}
    for version in ("2", "1"):
        await commands.serve(f"pin?version={version}", version)
        right |= _right_outputs(addresses, messages, version)
    if any(right[each.image, "1"] == right[each.image, "2"] for each in messages):
        raise SystemExit("The two versions answer the same, so they cannot be told apart.")
    commands.seconds.clear()
    return right


def _right_outputs(
    addresses: Sequence[Address], messages: Sequence[Message], version: str
) -> Mapping[tuple[int, str], object]:
    """Ask each idle replica; SystemExit if one differs or is of another version."""
    found: dict[tuple[int, str], object] = {}
    for message in messages:
        for address in addresses:
            named, outputs = version_and_outputs(exchange_or_exit(address, message))
            if named != version or found.setdefault((message.image, version), outputs) != outputs:
                raise SystemExit(f"{address} answers by version {named}, or other numbers.")
    return found


def exchange_or_exit(address: Address, message: Message) -> Response:
    """Return the response to a request; SystemExit if it is none of status 200."""
    response = exchange(address, message.content)
    if response is None or response.status != 200:
        raise SystemExit(f"{address} does not answer: {response}")
    return response
