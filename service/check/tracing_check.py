"""Checks that traces can be sent where OpenTelemetry's variables ask for them. Sends none."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

from service.check.findings import Finding, fine, warning
from service.settings import ServiceSettings
from service.tracing.trace_settings import ENDPOINTS, TraceSettings
from service.tracing.tracer import why_nothing_is_sent

_SUBJECT = "traces"
_PORTS = {"http": 80, "https": 443}
_CONNECT_SECONDS = 2.0


def check_tracing(_settings: ServiceSettings) -> Iterator[Finding]:
    """Yield a warning for each reason why traces are not sent as the variables say."""
    settings = TraceSettings.of(os.environ)
    problems = [*settings.problems]
    if settings.sampler is not None:
        reason = why_nothing_is_sent() or _why_unreachable()
        if reason is not None:
            problems.append(reason)
    for problem in problems:
        yield warning(_SUBJECT, problem)
    if settings.sampler is not None and not problems:
        yield fine(_SUBJECT, f"a collector listens at {_endpoint()[1].netloc}.")


def _endpoint() -> tuple[str, SplitResult]:
    """Return the variable that names the collector, and its URL."""
    name = next(each for each in ENDPOINTS if os.environ.get(each))
    return name, urlsplit(os.environ[name])


def _why_unreachable() -> str | None:
    """Return in one sentence why no collector can be there; None if something listens."""
    name, url = _endpoint()
    try:
        address = url.hostname or "", url.port or _PORTS[url.scheme]
        with closing(socket.create_connection(address, _CONNECT_SECONDS)):
            pass
    except ValueError:  # a port or a name that is none
        return f"{name} is no URL; write http://HOST:4318, or with https://."
    except OSError as reason:
        return (
            f"{url.netloc} does not answer ({reason.strerror or reason}), and spans are dropped "
            f"while it does not; start the collector, or correct {name}."
        )
    if name == ENDPOINTS[0] and url.path in ("", "/"):
        return f"{name} is used as it stands, without a path; write {url.geturl()} with /v1/traces."
    return None
