"""Checks what the settings say of proxies, hosts, origins and rates. Touches no file and no socket.

Their mistakes are silent: the service starts, and refuses clients, or believes strangers.
"""

from collections.abc import Iterator

from service.check.findings import Finding, fine, warning
from service.edge.allowed_hosts import parse_hosts
from service.edge.cors_origins import ANY, parse_origins
from service.settings import ServiceSettings

_DEFAULT_PORTS = {"http": "80", "https": "443"}


def check_edge(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what would refuse clients that are meant, or believe those that are not."""
    yield from _check_hosts(settings)
    yield from _check_origins(settings)
    yield from _check_proxies(settings)
    yield from _check_rates(settings)


def _check_hosts(settings: ServiceSettings) -> Iterator[Finding]:
    if settings.allowed_hosts is None:
        return
    hosts = parse_hosts(settings.allowed_hosts)
    if hosts:
        yield fine(
            "hosts",
            f"requests to other names than {', '.join(hosts)} are refused (421), /health/… "
            "excepted; Prometheus and a proxy that sends its own Host need theirs among them.",
        )
    else:
        yield warning(
            "hosts",
            "--allowed-hosts names none, so every request is refused (421); name those by which "
            "clients call the service, or leave it out.",
        )


def _check_origins(settings: ServiceSettings) -> Iterator[Finding]:
    if settings.cors_origins is None:
        return
    origins = parse_origins(settings.cors_origins)
    if not origins:
        yield warning("origins", "--cors-origins names none, so it has no effect; leave it out.")
    for origin in origins if origins != (ANY,) else ():
        scheme, _, host = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None:
            continue
        if host.endswith(f":{port}"):
            yield warning(
                "origins",
                f"--cors-origins: browsers send {origin} without the port {port}, so it never "
                f"matches; write {origin.removesuffix(f':{port}')}.",
            )


def _check_proxies(settings: ServiceSettings) -> Iterator[Finding]:
    if settings.trusted_proxies is None:
        return
    for network in settings.trusted_networks:
        if network.prefixlen == 0:
            yield warning(
                "proxies",
                f"--trusted-proxies {network} believes whoever connects, so that clients choose "
                "their own addresses, for limits and the log; name the proxies alone.",
            )
    if settings.trusted_networks and settings.tls_files is not None:
        shown = " and show it a client certificate" if settings.tls_client_ca else ""
        yield fine(
            "proxies",
            f"the port takes https alone, so the proxies have to speak https to it{shown}.",
        )


def _check_rates(settings: ServiceSettings) -> Iterator[Finding]:
    if not settings.limits_client_rates:
        if "client_burst_seconds" in settings.model_fields_set:
            yield warning(
                "rates",
                "--client-burst-seconds limits nothing alone; give --client-requests-per-second "
                "or --client-images-per-second, too.",
            )
        return
    is_behind_proxy = settings.root_path is not None
    if is_behind_proxy and settings.api_keys_file is None and not settings.trusted_networks:
        yield warning(
            "rates",
            "all clients of the proxy that publishes the --root-path have its address, and share "
            "what one client may send; name the proxy with --trusted-proxies, or give keys.",
        )
