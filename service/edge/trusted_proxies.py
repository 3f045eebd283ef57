"""What the service knows of reverse proxies before it: which to believe, and under which path.

A proxy may publish the service under a path prefix, and may or may not remove the prefix before it
passes a request on. Knows no route and no HTTP library.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

MAX_PREFIX_LENGTH = 200
"""The most characters of a path prefix."""
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")
"""Segments of unreserved characters (RFC 3986, 2.3), since a prefix is repeated to clients."""

_REMEMBERED_ADDRESSES = 1_024
"""Addresses of which it is remembered whether they are trusted: parsing one takes microseconds."""

Network = IPv4Network | IPv6Network


def parse_prefix(text: str) -> str:
    """Return a path prefix without a slash at its end; `/` is the empty prefix.

    Raises:
        ValueError: it is no such prefix.
    """
    prefix = text.removesuffix("/")
    if len(prefix) > MAX_PREFIX_LENGTH or not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{text[:MAX_PREFIX_LENGTH]!r} is no path prefix; write /NAME or /NAME/NAME, with "
            f"letters, digits and ._~- in the names, at most {MAX_PREFIX_LENGTH} characters."
        )
    return prefix


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks in a list of addresses and networks with commas between.

    Raises:
        ValueError: one of them is neither.
    """
    networks = []
    for item in filter(None, map(str.strip, text.split(","))):
        try:
            networks.append(ip_network(item))
        except ValueError:
            raise ValueError(
                f"{item!r} is neither an address nor a network; write such as 10.0.0.7, "
                "10.0.0.0/8 or fd00::/8, with commas between."
            ) from None
    return tuple(networks)


class ReverseProxies:
    """The proxies whose headers are believed, and the prefix that the operator has named."""

    def __init__(self, root_path: str = "", trusted: tuple[Network, ...] = ()) -> None:
        self.root_path = root_path
        self._start = f"{root_path}/"
        self._trusted = trusted
        self._is_trusted = lru_cache(_REMEMBERED_ADDRESSES)(self._is_in_trusted_network)

    def route_path(self, path: str) -> str:
        """Return the path without the root path, whether or not a proxy has removed that."""
        if self.root_path and path.startswith(self._start):
            return path[len(self.root_path) :]
        return path

    def trusts(self, peer: str | None) -> bool:
        """Return whether the headers of a connection from the address `peer` are believed."""
        return bool(self._trusted) and peer is not None and self._is_trusted(peer)

    def _is_in_trusted_network(self, peer: str) -> bool:
        address = ip_address(peer)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)

    def public_prefix(self, peer: str | None, forwarded: str | None) -> str:
        """Return the prefix of the address that the client of a request has used.

        forwarded: the header X-Forwarded-Prefix. A proxy that removes a prefix appends it, so that
        of several the first is the outermost. What is malformed is ignored.
        """
        if forwarded is None or not self.trusts(peer):
            return self.root_path
        try:
            return parse_prefix(
                "".join(parse_prefix(each.strip()) for each in forwarded.split(","))
            )
        except ValueError:
            return self.root_path
