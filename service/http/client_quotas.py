"""Counts the connections, bytes and requests of each client and limits them. Knows no HTTP.

A client is an IPv4 address, or an IPv6 /64 network, since one subscriber has all of its addresses.
No client may use up a resource: one that floods the server leaves a share to the others. Where
several clients together have used up a resource, a client that has less than an equal share may
still exceed the limit, so that at most twice the limit is in use (max-min fairness; Bertsekas &
Gallager 1992, 6.5).
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
"""The most of each resource that one client may use; large, since a proxy is one client."""

_LOOP_REQUESTS, _MIN_CLIENT_REQUESTS = 64, 2
"""Requests begun in one iteration of the event loop: by all clients, and at least by each."""
_URGENT_REQUESTS = 4
"""Urgent requests that each client may begin in an iteration beyond its quota."""
_QUOTA_DECAY = 0.9
"""Factor by which the number of recently active clients decays with each iteration."""

_EVICTION_TRIES = 32
"""Connections that are examined for an idle one: the oldest, which are most likely to be idle."""


class Connection(Protocol):
    """What this module needs of a connection."""

    turn_cost: int
    """How many requests what has waited counts as."""

    def evict_if_idle(self) -> bool:
        """Close the connection if it is idle; return whether it was."""
        ...

    def begin_waiting_request(self) -> None:
        """Begin the request that has waited, if it still can begin."""
        ...


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What all clients together may use, in one process."""

    connections: int
    buffered_bytes: int
    """Bytes of requests that are arriving and of responses that the client has not read."""
    requests: int
    """Requests in flight."""

    @property
    def per_client(self) -> "ResourceLimits":
        """What one client may use of it; at least one connection and one request."""
        return ResourceLimits(
            math.ceil(_CLIENT_SHARE * self.connections),
            math.ceil(_CLIENT_SHARE * self.buffered_bytes),
            math.ceil(_CLIENT_SHARE * self.requests),
        )


class Client:
    """What one client uses now."""

    __slots__ = (
        "_quota",
        "address",
        "begun_requests",
        "buffered_bytes",
        "connections",
        "requests",
        "urgent_requests",
        "waiting_connections",
    )

    def __init__(self, address: str, quota: "LoopQuota") -> None:
        self.address = address
        self.connections: dict[Connection, None] = {}
        """An ordered set, oldest first."""
        self.buffered_bytes = 0
        self.requests = 0
        self._quota = quota
        self.begun_requests = 0
        """Requests begun in the current iteration of the event loop."""
        self.urgent_requests = 0
        """Urgent requests begun in the current iteration beyond the quota."""
        self.waiting_connections: deque[Connection] = deque()
        """Connections with a request that waits for a later iteration of the event loop."""

    def may_begin_request(
        self, loop: asyncio.AbstractEventLoop, *, is_urgent: bool = False, cost: int = 1
    ) -> bool:
        """Return whether a request of this client may begin in this iteration of the event loop.

        If not, the caller appends the connection to `waiting_connections`; its
        `begin_waiting_request` is called when the request may begin. A few urgent requests may
        begin beyond the quota.

        cost: how many requests it counts as.
        """
        requests = self.begun_requests
        if requests:
            if self.waiting_connections or requests >= self._quota.client_requests:
                self.urgent_requests += is_urgent
                return is_urgent and self.urgent_requests <= _URGENT_REQUESTS
        else:
            self._begin_iteration(loop)
        self.begun_requests = requests + cost
        return True

    def _begin_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self._quota.add_client()
        loop.call_soon(self._end_iteration, loop)

    def _end_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self.begun_requests = self.urgent_requests = 0
        self._quota.remove_client()
        waiting = self.waiting_connections
        if not waiting:
            return
        self._begin_iteration(loop)
        turns = []
        while waiting and self.begun_requests < self._quota.client_requests:
            turns.append(waiting.popleft())
            self.begun_requests += turns[-1].turn_cost
        for connection in turns:
            connection.begin_waiting_request()


class LoopQuota:
    """How many requests each client may begin in one iteration of the event loop.

    The requests of an iteration are divided by the number of clients that were active recently.
    """

    def __init__(self) -> None:
        self.client_requests = _LOOP_REQUESTS
        """Most requests of one client in an iteration."""
        self._active_clients = 0
        """Clients that have begun a request in the current iteration."""
        self._recent_clients = 1.0

    def add_client(self) -> None:
        """Count a client that begins its first request of the current iteration."""
        self._active_clients += 1
        if self._active_clients > self._recent_clients:
            self._recent_clients = self._active_clients
            self._divide()

    def remove_client(self) -> None:
        """Count a client no longer, at the end of the iteration."""
        self._active_clients -= 1
        if self._recent_clients > 1:
            self._recent_clients = max(
                1.0, self._active_clients, _QUOTA_DECAY * self._recent_clients
            )
            self._divide()

    def _divide(self) -> None:
        self.client_requests = max(_MIN_CLIENT_REQUESTS, int(_LOOP_REQUESTS / self._recent_clients))


CURRENT_CLIENT: ContextVar[Client | None] = ContextVar("client", default=None)
"""The client whose request the current task answers."""


class Clients:
    """All clients of one process, and what they use together.

    Not thread-safe: only the event-loop thread may use it.
    """

    def __init__(self, limits: ResourceLimits) -> None:
        self.limits = limits
        self._client_limits = limits.per_client
        self._max_requests = limits.requests, limits.per_client.requests
        self._by_address: dict[str, Client] = {}
        self.connections = 0
        self.buffered_bytes = 0
        self.requests = 0
        self._buffering_clients = self._requesting_clients = 0
        """How many clients have buffered bytes, and how many have requests in flight."""
        self._quota = LoopQuota()
        self.trusted = Client("", self._quota)
        """The client without limits of its own: the control listener, and in-process tests."""

    def connect(self, host: str | None, connection: Connection) -> Client | None:
        """Count a new connection from the address `host`; return None if there are too many.

        An idle connection is closed to make room: one of the client itself if it has its share
        already, else one of the client that has most connections.

        host: None for the trusted client.
        """
        if host is None:
            client = self.trusted
        else:
            address = client_network(host)
            client = self._by_address.get(address) or Client(address, self._quota)
        if client is not self.trusted:
            has_share = len(client.connections) >= self._client_limits.connections
            is_full = self.connections >= self.limits.connections
            if has_share or is_full:
                evicted_client = client if has_share else self._client_with_most_connections()
                if not _evict_one(evicted_client):
                    return None
        if client is not self.trusted:
            self._by_address[client.address] = client
        client.connections[connection] = None
        self.connections += 1
        return client

    def disconnect(self, client: Client, connection: Connection) -> None:
        """Count a connection no longer."""
        if connection in client.connections:
            del client.connections[connection]
            self.connections -= 1
        self._remove_if_unused(client)

    def add_buffered_bytes(self, client: Client, size: int) -> bool:
        """Count bytes that are buffered for a client; return whether they are within the limits.

        size: negative for bytes that are no longer buffered.
        """
        self._buffering_clients -= client.buffered_bytes > 0
        client.buffered_bytes += size
        self.buffered_bytes += size
        self._buffering_clients += client.buffered_bytes > 0
        return size <= 0 or (
            client.buffered_bytes <= self._client_limits.buffered_bytes
            and (
                self.buffered_bytes <= self.limits.buffered_bytes
                or client.buffered_bytes * self._buffering_clients <= self.limits.buffered_bytes
            )
        )

    def admits(self, client: Client) -> bool:
        """Return whether one more request of a client may be in flight."""
        limit, client_limit = self._max_requests
        if self.requests < limit:
            return client.requests < client_limit or client is self.trusted
        return client.requests * self._requesting_clients < limit and self._requesting_clients > 1

    def begin_request(self, client: Client) -> None:
        """Count a request that is in flight from now on."""
        if not client.requests:
            self._requesting_clients += 1
        client.requests += 1
        self.requests += 1

    def end_request(self, client: Client) -> None:
        """Count a request that is no longer in flight."""
        client.requests -= 1
        self.requests -= 1
        if not client.requests:
            self._requesting_clients -= 1
            self._remove_if_unused(client)

    def _client_with_most_connections(self) -> Client:
        clients = self._by_address.values()
        return max(clients, key=lambda client: len(client.connections), default=self.trusted)

    def _remove_if_unused(self, client: Client) -> None:
        if not (client.connections or client.requests):
            self._by_address.pop(client.address, None)


def _evict_one(client: Client) -> bool:
    """Close one idle connection of a client; return whether there was one."""
    oldest: Iterator[Connection] = iter(list(islice(client.connections, _EVICTION_TRIES)))
    return any(connection.evict_if_idle() for connection in oldest)


def client_network(host: str) -> str:
    """Return the address that identifies a client: IPv4 as it is, IPv6 as its /64 network."""
    if ":" not in host:
        return host
    address = IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, 64), strict=False))
