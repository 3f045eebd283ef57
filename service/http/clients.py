"""Which clients are connected, and how much of the server each holds. Knows no HTTP.

A client is an address; of IPv6 it is the /64 network, of which one subscriber has all addresses. No
client may take a whole resource, so that one that floods the server leaves a share to others, and
where several have taken all of it, who has less than an equal part still gets something: so there
is at most twice what the limits say (max-min fairness; Bertsekas & Gallager 1992, 6.5).
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from itertools import islice
from typing import Protocol

_CLIENT_SHARE = 0.75
"""Of each resource, for one client at most; a proxy is one client, so it is no small share."""

_TURN_REQUESTS, _LEAST_TURN_REQUESTS = 64, 2
"""Of all clients in one turn of the event loop, and of each where they are many."""
_URGENT_REQUESTS = 4
"""Of each client, beyond its part of a turn."""
_TURN_MEMORY = 0.9
"""How slowly it is forgotten, turn by turn, that many clients have sent requests."""

_EVICTION_TRIES = 32
"""Connections that are looked at for an idle one: the oldest, which are the likeliest."""


class Connection(Protocol):
    """What is used of a connection."""

    def evict(self) -> bool:
        """Close it if it is idle, and tell whether it was."""
        ...

    def take_turn(self) -> None:
        """Begin the request that has waited, if it still can begin."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What all clients together may hold, in one process."""

    connections: int
    buffered_bytes: int
    """Of requests that are arriving and answers that are not read yet."""
    requests: int
    """Being answered."""

    @property
    def client(self) -> "Limits":
        """What one client may hold of it; at least one connection and one request."""
        return Limits(
            math.ceil(_CLIENT_SHARE * self.connections),
            math.ceil(_CLIENT_SHARE * self.buffered_bytes),
            math.ceil(_CLIENT_SHARE * self.requests),
        )


class Client:
    """What one client holds now."""

    __slots__ = (
        "_turns",
        "address",
        "buffered_bytes",
        "connections",
        "requests",
        "turn_requests",
        "urgent_requests",
        "waiting",
    )

    def __init__(self, address: str, turns: "Turns") -> None:
        self.address = address
        self.connections: dict[Connection, None] = {}
        """In the order in which they were made."""
        self.buffered_bytes = 0
        self.requests = 0
        self._turns = turns
        self.turn_requests = 0
        self.urgent_requests = 0
        """Of this turn, beyond its number."""
        self.waiting: deque[Connection] = deque()
        """Connections with a request for which there was no place in the turn that it came in."""

    def takes_turn(self, loop: asyncio.AbstractEventLoop, *, is_urgent: bool = False) -> bool:
        """Tell whether a request of this client may begin in this turn of the event loop.

        If not, let its connection wait in `waiting`: it is told when it may. A few that are urgent
        need not wait.
        """
        requests = self.turn_requests
        if requests:
            if self.waiting or requests >= self._turns.most:
                self.urgent_requests += is_urgent
                return is_urgent and self.urgent_requests <= _URGENT_REQUESTS
        else:
            self._begin_turn(loop)
        self.turn_requests = requests + 1
        return True

    def _begin_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns.begin()
        loop.call_soon(self._end_turn, loop)

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self.turn_requests = self.urgent_requests = 0
        self._turns.end()
        waiting = self.waiting
        if not waiting:
            return
        self._begin_turn(loop)
        self.turn_requests = min(len(waiting), self._turns.most)
        for _ in range(self.turn_requests):
            waiting.popleft().take_turn()


class Turns:
    """How many requests each client may begin in one turn of the event loop."""

    def __init__(self) -> None:
        self.most = _TURN_REQUESTS
        self._clients = 0
        """In the present turn."""
        self._recently = 1.0

    def begin(self) -> None:
        """Count a client that sends its first request of this turn."""
        self._clients += 1
        if self._clients > self._recently:
            self._recently = self._clients
            self._share()

    def end(self) -> None:
        """Count it no more."""
        self._clients -= 1
        if self._recently > 1:
            self._recently = max(1.0, self._clients, _TURN_MEMORY * self._recently)
            self._share()

    def _share(self) -> None:
        self.most = max(_LEAST_TURN_REQUESTS, int(_TURN_REQUESTS / self._recently))


CURRENT: ContextVar[Client | None] = ContextVar("client", default=None)
"""Whose request is being answered."""


class Clients:
    """All clients of one process, and what they hold together. Of the event loop's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._client_limits = limits.client
        self._most_requests = limits.requests, limits.client.requests
        self._by_address: dict[str, Client] = {}
        self.connections = 0
        self.buffered_bytes = 0
        self.requests = 0
        self._buffering = self._requesting = 0
        """How many clients hold bytes, and have requests."""
        self._turns = Turns()
        self.trusted = Client("", self._turns)
        """Who is not counted against a share: the control listener, and tests without a network."""

    def connect(self, host: str | None, connection: Connection) -> Client | None:
        """Count a new connection from the address `host`; None where there are too many.

        An idle connection makes room for a new one: where the client has its share already, one of
        its own, else one of the client that has most.
        """
        if host is None:
            client = self.trusted
        else:
            address = _network(host)
            client = self._by_address.get(address) or Client(address, self._turns)
        if client is not self.trusted:
            has_share = len(client.connections) >= self._client_limits.connections
            is_full = self.connections >= self.limits.connections
            if (has_share or is_full) and not _evict_one(client if has_share else self._heaviest()):
                return None
        if client is not self.trusted:
            self._by_address[client.address] = client
        client.connections[connection] = None
        self.connections += 1
        return client

    def disconnect(self, client: Client, connection: Connection) -> None:
        """Count a connection no more."""
        if connection in client.connections:
            del client.connections[connection]
            self.connections -= 1
        self._forget(client)

    def buffer(self, client: Client, size: int) -> bool:
        """Count bytes that are held for a client, and tell whether they are within the limits."""
        self._buffering -= client.buffered_bytes > 0
        client.buffered_bytes += size
        self.buffered_bytes += size
        self._buffering += client.buffered_bytes > 0
        return size <= 0 or (
            client.buffered_bytes <= self._client_limits.buffered_bytes
            and (
                self.buffered_bytes <= self.limits.buffered_bytes
                or client.buffered_bytes * self._buffering <= self.limits.buffered_bytes
            )
        )

    def admits(self, client: Client) -> bool:
        """Tell whether a client may have one more request answered."""
        most, most_of_client = self._most_requests
        if self.requests < most:
            return client.requests < most_of_client or client is self.trusted
        return client.requests * self._requesting < most and self._requesting > 1

    def begin(self, client: Client) -> None:
        """Count a request that is being answered."""
        if not client.requests:
            self._requesting += 1
        client.requests += 1
        self.requests += 1

    def end(self, client: Client) -> None:
        """Count it no more."""
        client.requests -= 1
        self.requests -= 1
        if not client.requests:
            self._requesting -= 1
            self._forget(client)

    def _heaviest(self) -> Client:
        clients = self._by_address.values()
        return max(clients, key=lambda client: len(client.connections), default=self.trusted)

    def _forget(self, client: Client) -> None:
        if not (client.connections or client.requests):
            self._by_address.pop(client.address, None)


def _evict_one(client: Client) -> bool:
    oldest: Iterator[Connection] = iter(list(islice(client.connections, _EVICTION_TRIES)))
    return any(connection.evict() for connection in oldest)


def _network(host: str) -> str:
    if ":" not in host:
        return host
    address = IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, 64), strict=False))
