"""Tells whether a request asks for a host that the service answers for. Knows no route.

A page of `evil.example` whose name is made to resolve to the service's address (DNS rebinding) is
of the same origin as the service to the browser, which sends `Host: evil.example`.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address

MAX_NAME_LENGTH = 253
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*)(?:\.[a-z0-9_][a-z0-9_-]*)*")
_WILDCARD = "*."


def parse_hosts(text: str) -> tuple[str, ...]:
    """Return the hosts in a list of names and addresses with commas between, in lower case.

    Raises:
        ValueError: one of them is neither.
    """
    hosts = []
    for item in filter(None, map(str.strip, text.split(","))):
        host = item.lower()
        try:
            name = str(IPv6Address(host.strip("[]"))) if ":" in host else host
        except ValueError:
            name = ""
        if not (":" in name or (_NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH)):
            raise ValueError(
                f"{item[:MAX_NAME_LENGTH]!r} is no host; write such as example.org, *.example.org, "
                "127.0.0.1 or ::1, without a port, with commas between."
            )
        hosts.append(name)
    return tuple(hosts)


class AllowedHosts:
    """The hosts that the service answers for."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Take the hosts that `parse_hosts` returns."""
        hosts = tuple(hosts)
        self._exact = frozenset(each for each in hosts if not each.startswith(_WILDCARD))
        self._suffixes = tuple(each[1:] for each in hosts if each.startswith(_WILDCARD))

    def includes(self, host: str) -> bool:
        """Return whether a host, with its port or without, is one of them.

        `*.example.org` includes every name below example.org, and not example.org itself.
        """
        name = _without_port(host.lower())
        return name in self._exact or (
            bool(self._suffixes) and name.endswith(self._suffixes) and not name.startswith(".")
        )


def _without_port(host: str) -> str:
    """Return a host without its port, brackets and the dot of a name that is complete."""
    if host.startswith("["):
        address, bracket, _ = host[1:].partition("]")
        try:
            return str(IPv6Address(address)) if bracket else ""
        except ValueError:
            return ""
    return host.partition(":")[0].removesuffix(".")
