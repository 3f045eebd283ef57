"""The address of a Label Studio, and which of the URLs in its tasks are files that it holds.

Knows no HTTP.
"""

from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

_FILE_PATHS = ("/data/", "/storage-data/")
"""Where a Label Studio serves uploaded and local files; nothing else of it is ever fetched."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "https://label-studio.example.org"


class LabelStudioUrl(NamedTuple):
    """The address of one Label Studio."""

    origin: str
    """Scheme, host and port."""
    prefix: str
    """The path below which it is published; empty, or without a slash at its end."""

    def __str__(self) -> str:
        """Return the address as one URL."""
        return self.origin + self.prefix

    def file_url(self, reference: str) -> str:
        """Return the URL of a file that a task names by its path or whole URL.

        Raises:
            ValueError: says why it is not fetched.
        """
        try:
            parts = urlsplit(reference)
            is_elsewhere = (parts.scheme or parts.netloc) and _origin(parts) != self.origin
        except ValueError:
            raise ValueError("it is no URL") from None
        if is_elsewhere or not parts.path.startswith("/"):
            raise ValueError(f"only files of {self} are fetched, and data: URLs are read")
        path = parts.path.removeprefix(self.prefix)
        decoded = unquote(path)
        if (
            not path.startswith(_FILE_PATHS)
            or {".", ".."} & {*decoded.split("/")}
            or "\\" in decoded
            or not decoded.isprintable()
        ):
            raise ValueError(f"only files below {' and '.join(_FILE_PATHS)} are fetched")
        query = f"?{parts.query}" if parts.query else ""
        return f"{self}{path}{query}"


def parse_label_studio(url: str) -> LabelStudioUrl:
    """Parse the address of a Label Studio.

    Raises:
        ValueError: says what is wrong, without the credentials in the URL.
    """
    try:
        parts = urlsplit(url)
        origin = _origin(parts)
    except ValueError:
        raise ValueError(f"it is no URL; write one such as {_EXAMPLE}.") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"it is no http:// or https:// address; write one such as {_EXAMPLE}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"an address has no user name, query or fragment; write one such as {_EXAMPLE}, and "
            "the token into --label-studio-token-file."
        )
    return LabelStudioUrl(origin, parts.path.rstrip("/"))


def _origin(parts: SplitResult) -> str:
    """Return scheme, host and port in one spelling; raises ValueError for an impossible port."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    shown = "" if port is None or port == _DEFAULT_PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"
