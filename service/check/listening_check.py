"""Checks that the service can listen, and who reaches it. Listens a moment, accepts nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

from service.check.findings import Finding, error, fine, warning
from service.http import listeners
from service.run_server import (
    NO_KEYS_HINT,
    StartError,
    admits_everybody,
    allowed_connections,
    is_reachable,
    listen_for_control,
    listen_publicly,
    public_url,
)
from service.settings import ServiceSettings

_SUBJECT = "port"


def check_listening(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield whether the port and the control listener can be had, and who reaches the port."""
    if _is_host_reachable(settings.host):
        yield from _check_openness(settings)
    try:
        listener = listen_publicly(settings)
    except StartError as refusal:
        yield _refused(settings, str(refusal))
        return
    with listener:  # which has the port, as at the start, while the control listener is tried
        url = public_url(settings, listener)
        yield from _check_control(settings)
    yield fine(_SUBJECT, f"{'a free one' if settings.port == 0 else url} can be listened on.")


def check_descriptors(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield a warning if the limit on open files allows fewer connections than the settings do."""
    allowed = allowed_connections(settings)
    if allowed < settings.max_connections:
        yield warning(
            "open files",
            f"the limit (ulimit -n) allows {allowed} connections a worker; raise it, or lower "
            f"--max-connections, which is {settings.max_connections}.",
        )


def _is_host_reachable(host: str) -> bool:
    """Return whether other machines reach what listens on a host, whichever port is free."""
    try:
        with listeners.listen(host, 0) as listener:
            return is_reachable(listener)
    except OSError:
        return False


def _check_openness(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what other machines, which reach the port, may do or read."""
    if admits_everybody(settings):
        yield warning(_SUBJECT, f"{NO_KEYS_HINT}.")
    if settings.api_keys_file is not None and settings.tls_files is None:
        yield warning(
            _SUBJECT,
            "keys can be read on their way by others, as the port takes http; give "
            "--tls-certificate and --tls-key, or let a proxy with TLS be the only one that "
            "reaches it.",
        )


def _refused(settings: ServiceSettings, sentence: str) -> Finding:
    """Return that the port cannot be had, which is fine if a service of this user has it."""
    if settings.control == "nobody" or not _is_answered(settings):
        return error(_SUBJECT, sentence)
    return fine(
        _SUBJECT,
        f"a running Dropserve has {settings.host} port {settings.port}; after it has ended, these "
        "settings can have it.",
    )


def _is_answered(settings: ServiceSettings) -> bool:
    """Return whether a service accepts connections on the control socket of these settings."""
    path = settings.control_socket or listeners.default_control_socket(settings.port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _check_control(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield an error if a control listener that is configured cannot be had.

    Without the default socket the service starts as well, and where none is configured nothing is
    tried, since its folder would be left behind.
    """
    if settings.control_port is None and settings.control_socket is None:
        return
    try:
        with ExitStack() as stack:
            listen_for_control(settings, settings.port, stack)
    except StartError as refusal:
        yield error("control", str(refusal))
