"""Checks that a Label Studio can be served, and that its token is not sent in the clear."""

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from service.check.findings import Finding, error, fine, warning
from service.label_studio.task_images import why_label_studio_is_unusable
from service.settings import ServiceSettings

_SUBJECT = "label studio"


def check_label_studio(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what keeps the service from fetching images of tasks; it asks no network."""
    url = settings.label_studio_url
    if url is None:
        return
    problem = why_label_studio_is_unusable(settings)
    if problem is not None:
        yield error(_SUBJECT, problem)
    elif settings.label_studio_token_file is None:
        yield warning(
            _SUBJECT,
            f"{url} gives uploaded files to its users alone, and no token is sent; give one with "
            "--label-studio-token-file.",
        )
    elif url.origin.startswith("http://") and not _is_loopback(url.origin):
        yield warning(
            _SUBJECT,
            f"the token is sent to {url} readable for everybody on the way; use https://, or a "
            "network of these two alone.",
        )
    else:
        yield fine(_SUBJECT, f"images of tasks are fetched from {url}, with a token.")


def _is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
