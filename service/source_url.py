"""The URL of a models source: its scheme, its place without credentials, and its credentials.

Knows no library that reads from there.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

SCHEMES = ("s3", "gs", "az", "https")
"""The schemes of a source; http is another one for this machine's own addresses."""


@dataclass(frozen=True)
class SourceUrl:
    """Where bundles are published, which may be shown and logged."""

    scheme: str
    place: str
    """The URL without user name and password."""
    authorization: str | None = field(default=None, repr=False)
    """The value of the header `Authorization`, where the URL has a user name and password."""

    def __str__(self) -> str:
        """Return the URL without credentials."""
        return self.place

    @property
    def has_index(self) -> bool:
        """Whether the versions stand in an index file, since HTTP lists no folder."""
        return self.scheme in ("http", "https")


def parse_source(url: str) -> SourceUrl:
    """Parse the URL of a source.

    Raises:
        ValueError: says what is wrong, without the credentials in the URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"it is no URL; write one such as {_EXAMPLE}.") from None
    if parts.scheme not in (*SCHEMES, "http") or not host:
        allowed = ", ".join(f"{each}://" for each in SCHEMES)
        raise ValueError(f"it begins with none of {allowed}; write one such as {_EXAMPLE}.")
    if parts.query or parts.fragment:
        raise ValueError("a source has no query and no fragment; leave out what follows ? or #.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("http:// is for this machine's own addresses alone; use https://.")
    if parts.scheme in ("http", "https") and "@" in parts.path:  # it may be the end of a password
        raise ValueError(
            "its path has an @; write / in a user name or password as %2F, and @ in a path as %40."
        )
    has_credentials = parts.username is not None
    if has_credentials and parts.scheme not in ("http", "https"):
        raise ValueError(
            f"{parts.scheme}:// takes its credentials from the environment; leave them out of the "
            "URL."
        )
    place = f"[{host}]" if ":" in host else parts.netloc.rpartition("@")[2].partition(":")[0]
    place += "" if port is None else f":{port}"
    return SourceUrl(
        parts.scheme,
        f"{parts.scheme}://{place}{parts.path.rstrip('/')}",
        _basic(parts.username, parts.password) if has_credentials else None,
    )


_EXAMPLE = "s3://bucket/models"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _basic(user: str | None, password: str | None) -> str:
    """Return the header of HTTP's basic authentication (RFC 7617)."""
    pair = f"{unquote(user or '')}:{unquote(password or '')}"
    return "Basic " + b64encode(pair.encode()).decode()
