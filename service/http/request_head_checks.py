"""Decides once for each head who has sent it and whether its host and origin are served.

The fast path keeps the result with the heads that it remembers. Knows no route but health checks.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Scope

from service.edge.allowed_hosts import AllowedHosts
from service.edge.forwarded_headers import find_sender
from service.edge.trusted_proxies import ReverseProxies
from service.errors import WrongHostError
from service.http.asgi_request import CLIENT, CONTROL, TARGET_HOST
from service.http.client_quotas import Client, client_network
from service.http.cors_headers import CrossOrigin
from service.http.error_responses import domain_error_response
from service.http.request_body import header

INSPECTED = "dropserve.inspected"
"""The key of a request's scope with its `InspectedHead`."""
_ANY_HOST = ("/health/", "/v2/health/")
"""Paths that are answered whatever host they name: orchestrators ask by address."""

HeaderLines = Sequence[tuple[bytes, bytes]]


_THIS_MACHINE = AllowedHosts(("localhost", "127.0.0.1", "::1"))


class InspectedHead(NamedTuple):
    """What is decided about a request by its head."""

    address: str | None
    """The address of the client that sent it, as far as trusted proxies say so."""
    network: str
    """The client that limits count: an IPv4 address or an IPv6 /64 network; "" for the trusted."""
    response_headers: HeaderLines
    """What is added to the answer, whatever that is."""
    answer: Response | None = None
    """The answer, if it needs no route: to a preflight, or to a wrong host."""


class HeadInspector:
    """Inspects the heads of requests."""

    def __init__(
        self,
        proxies: ReverseProxies,
        hosts: AllowedHosts | None = None,
        cross_origin: CrossOrigin | None = None,
    ) -> None:
        """Take what the settings name; None: every host is served, no other origin may read."""
        self._proxies = proxies
        self._hosts = hosts
        self._cross_origin = cross_origin

    def inspect(self, scope: Scope) -> InspectedHead:
        """Return what is decided about a request, and set the scope's scheme."""
        client: Client | None = scope.get(CLIENT)
        peer = scope["client"][0] if scope.get("client") else None
        address, network = peer, client.address if client else ""
        hosts: tuple[str, ...] = ()
        if peer is not None and self._proxies.trusts(peer) and not scope.get(CONTROL):
            sender = find_sender(peer, scope["scheme"], partial(header, scope), self._proxies)
            address, hosts = sender.address, sender.hosts
            network = client_network(address)
            scope["scheme"] = sender.scheme
        lines: HeaderLines = ()
        answer = None
        # The control listener needs no key, so no page shall read what it answers.
        cross_origin = None if scope.get(CONTROL) else self._cross_origin
        if cross_origin is not None:
            lines = cross_origin.response_headers(header(scope, b"origin"))
        if not self._serves_hosts(scope, hosts):
            answer = domain_error_response(WrongHostError(is_control=bool(scope.get(CONTROL))))
        elif cross_origin is not None and scope["method"] == "OPTIONS":
            answer = cross_origin.preflight_response(scope)
            lines = lines if answer is None else ()
        return InspectedHead(address, network, lines, answer)

    def _serves_hosts(self, scope: Scope, forwarded: tuple[str, ...]) -> bool:
        """Return whether every host that the request names is served."""
        hosts = self._control_hosts(scope) if scope.get(CONTROL) else self._hosts
        if hosts is None or scope["path"].startswith(_ANY_HOST):
            return True
        named = [header(scope, b"host"), scope.get(TARGET_HOST), *forwarded]
        found = [each for each in named if each is not None]
        return bool(found) and all(map(hosts.includes, found))

    def _control_hosts(self, scope: Scope) -> AllowedHosts | None:
        """Return the hosts of the control listener: this machine's, if it has a port.

        No key is needed there, so a page whose name was made to resolve to this machine shall not
        reach it. None: it is a Unix socket, which no page reaches.
        """
        return _THIS_MACHINE if scope.get("client") else None
