"""The check of hosts, origins, proxies and rates."""

from pathlib import Path
from typing import Any

import pytest

from service.check.edge_check import check_edge
from service.check.findings import Level
from service.settings import ServiceSettings
from tests.service.check.test_checks import FINE, WARNING, check_found

PAIR = {"tls_certificate": Path("c"), "tls_key": Path("k")}


@pytest.mark.parametrize(
    ("options", "level", "sentence"),
    [
        ({"allowed_hosts": "a.org"}, FINE, "requests to other names than a.org are refused …"),
        ({"allowed_hosts": ","}, WARNING, "--allowed-hosts names none, so every request …"),
        ({"cors_origins": ""}, WARNING, "--cors-origins names none, so it has no effect; …"),
        (
            {"cors_origins": "http://a.org,https://b.org:443"},
            *(WARNING, "--cors-origins: browsers send …:443 without …; write https://b.org."),
        ),
        (
            {"trusted_proxies": "10.0.0.1,::/0"},
            *(WARNING, "--trusted-proxies ::/0 believes whoever connects, …; name the …"),
        ),
        (
            {"trusted_proxies": "10.0.0.1", **PAIR},
            *(FINE, "the port takes https alone, so the proxies have to speak https to it."),
        ),
        (
            {"trusted_proxies": "10.0.0.1", "tls_client_ca": Path("a"), **PAIR},
            *(FINE, "…, so the proxies have to speak https to it and show it a client …"),
        ),
        ({"client_burst_seconds": 5}, WARNING, "--client-burst-seconds limits nothing alone; …"),
        (
            {"client_images_per_second": 5, "root_path": "/a"},
            *(WARNING, "all clients of the proxy that publishes the --root-path have its …"),
        ),
    ],
)
def test_mistake_is_found(options: dict[str, Any], level: Level, sentence: str) -> None:
    check_found(check_edge(ServiceSettings(**options)), (level, sentence))


def test_settings_as_they_are_meant_have_no_finding() -> None:
    origins = "https://a.org,http://localhost:3000,https://a.org:80"
    for options in (
        {},
        {"cors_origins": origins},
        {"cors_origins": "*"},
        {"trusted_proxies": "10.0.0.0/8"},
        {"client_images_per_second": 5, "root_path": "/a", "trusted_proxies": "10.0.0.1"},
    ):
        assert list(check_edge(ServiceSettings.model_validate(options))) == []
