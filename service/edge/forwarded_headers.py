"""Finds who sent a request to the proxies before the service. Knows no connection and no route.

Both `Forwarded` (RFC 7239) and `X-Forwarded-For`, `-Proto` and `-Host` are read from the right,
where the proxy next to the service has written, and no further than to the first address that is no
trusted proxy: what stands left of it was written by others, and may be anything of any length.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from service.edge.trusted_proxies import ReverseProxies

MAX_PROXIES = 16
"""The most trusted proxies that a request may have come through."""
_MAX_HOST_LENGTH = _MAX_NODE_LENGTH = 255
_HOST = re.compile(r"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_NODE = re.compile(
    r"(?P<v4>[0-9.]+)(?::[0-9]{1,5})?"
    r"|\[(?P<bracketed>[0-9A-Fa-f:.]+)\](?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
    r"|(?P<bare>[0-9A-Fa-f:.]+)"
    r"|(?P<hidden>unknown|_[A-Za-z0-9._-]+)(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?",
    re.IGNORECASE,
)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - of RFC 9110, 5.6.2
_REVERSED_PAIR = rf'(?:"[^"\\]*"|{_TOKEN})={_TOKEN}'
_REVERSED_ELEMENT = re.compile(rf"[ \t]*({_REVERSED_PAIR}(?:;{_REVERSED_PAIR})*)[ \t]*(?:,|\Z)")
"""The last element of `Forwarded`, written backwards.

Read forwards, a quotation mark that a client leaves open would swallow what a proxy appends.
"""

_REMEMBERED_NODES = 1_024

Lookup = Callable[[bytes], str | None]
"""Returns the value of a header by its lower-case name, several lines joined with commas."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, and what for."""

    address: str
    scheme: str
    hosts: tuple[str, ...] = ()
    """The hosts that proxies say they were asked for, besides the header Host."""


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one proxy says of the request that it received."""

    node: str | None
    scheme: str | None
    host: str | None


def find_sender(peer: str, scheme: str, lookup: Lookup, proxies: ReverseProxies) -> Sender:
    """Return who sent a request that came over a connection from the address `peer`.

    Only a trusted peer's headers are read. Where they are malformed, or the two kinds of header
    name two senders, it is the peer, whose scheme is that of the connection; the hosts that they
    name still count, since a client may have written one of the two.
    """
    direct = Sender(peer, scheme)
    if not proxies.trusts(peer):
        return direct
    found: list[Sender] = []
    is_clear = True
    for hops in (_x_forwarded(lookup), _forwarded(lookup)):
        if hops is not None:
            try:
                found.append(_follow(direct, hops, proxies))
            except ValueError:
                is_clear = False
    hosts = tuple(host for each in found for host in each.hosts)
    if not is_clear:
        hosts += _last_host(lookup)
    if not is_clear or len({each.address for each in found}) != 1:
        return Sender(peer, scheme, hosts)
    return Sender(found[0].address, found[0].scheme, hosts)


def _last_host(lookup: Lookup) -> tuple[str, ...]:
    """Return the host that the next proxy says it was asked for, if any; "" if that is none.

    A client cannot hide it by what it writes into other headers.
    """
    named = lookup(b"x-forwarded-host")
    if named is None:
        return ()
    host = next(_from_right(named))
    return (host if len(host) <= _MAX_HOST_LENGTH and _HOST.fullmatch(host) else "",)


def _follow(direct: Sender, hops: Iterator[_Hop], proxies: ReverseProxies) -> Sender:
    """Follow the hops from the last one to the first untrusted address.

    Raises:
        ValueError: a hop on the way is malformed, or there are too many.
    """
    address, scheme, host = direct.address, direct.scheme, None
    for number, hop in enumerate(hops):
        if number == MAX_PROXIES:
            raise ValueError("too many proxies")
        scheme, host = hop.scheme or scheme, hop.host or host
        node = None if hop.node is None else _address(hop.node)
        if node is None:  # a proxy may hide whom it has served: it stands for them
            break
        address = node
        if not proxies.trusts(node):
            break
    return Sender(address, scheme, () if host is None else (host,))


def _x_forwarded(lookup: Lookup) -> Iterator[_Hop] | None:
    """Return the hops that X-Forwarded-… describe, the last one first; None if there is none."""
    nodes, schemes, hosts = map(
        lookup, (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
    )
    if nodes is None and schemes is None and hosts is None:
        return None

    def hops() -> Iterator[_Hop]:
        of_scheme, of_host = _from_right(schemes), _from_right(hosts)
        scheme = host = None
        for node in [None] if nodes is None else _from_right(nodes):
            # A proxy may append to one of the headers and replace another.
            scheme, host = next(of_scheme, scheme), next(of_host, host)
            yield _Hop(node, _scheme(scheme), _host(host))

    return hops()


def _forwarded(lookup: Lookup) -> Iterator[_Hop] | None:
    """Return the hops that Forwarded describes, the last one first; None if there is none."""
    text = lookup(b"forwarded")
    if text is None:
        return None

    def hops() -> Iterator[_Hop]:
        backwards, position = text[::-1], 0
        while position < len(backwards):
            match = _REVERSED_ELEMENT.match(backwards, position)
            if match is None:
                raise ValueError("no element of Forwarded")
            position = match.end()
            pairs = [pair.partition("=") for pair in _split(match[1][::-1])]
            values = {name.lower(): value.strip('"') for name, _, value in pairs}
            if len(values) != len(pairs):
                raise ValueError("a parameter is given twice")
            yield _Hop(values.get("for"), _scheme(values.get("proto")), _host(values.get("host")))

    return hops()


_PAIRS = re.compile(rf'{_TOKEN}=(?:"[^"\\]*"|{_TOKEN})')


def _split(element: str) -> list[str]:
    return _PAIRS.findall(element)


def _from_right(text: str | None) -> Iterator[str]:
    """Yield the items of a list with commas between, the last one first, as far as asked for."""
    while text is not None:
        rest, comma, item = text.rpartition(",")
        yield item.strip()
        text = rest if comma else None


@lru_cache(_REMEMBERED_NODES)
def _address(node: str) -> str | None:
    """Return the address of a node (RFC 7239, 6) without its port; None if it is hidden.

    Raises:
        ValueError: it is no node.
    """
    match = _NODE.fullmatch(node) if len(node) <= _MAX_NODE_LENGTH else None
    if match is None:
        raise ValueError("no node")
    if match["hidden"]:
        return None
    address = ip_address(match["v4"] or match["bracketed"] or match["bare"])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _scheme(text: str | None) -> str | None:
    """Return a scheme in lower case; None if it is none of HTTP, which is ignored."""
    scheme = (text or "").lower()
    return scheme if scheme in ("http", "https") else None


def _host(text: str | None) -> str | None:
    """Return a host and port as they are.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    if len(text) > _MAX_HOST_LENGTH or not _HOST.fullmatch(text):
        raise ValueError("no host")
    return text
