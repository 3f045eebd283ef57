"""The files of deploy/ agree with the service's settings and with docs/deployment.md."""

import re
from typing import Any

import pytest

from service.run_server import _OTHER_DESCRIPTORS
from service.settings import ServiceSettings
from tests.conftest import ROOT
from tests.deployment.deploy_files import (
    DEPLOY,
    HAPROXY,
    NGINX,
    PAGE,
    UNIT,
    number,
    unit_values,
)


def default(name: str) -> Any:
    return ServiceSettings.model_fields[name].default


def test_proxies_take_the_bodies_that_the_service_takes() -> None:
    assert number(NGINX, "client_max_body_size") * 2**20 == default("max_body_bytes")
    assert f"{{ req.hdr_val(content-length) gt {default('max_body_bytes')} }}" in HAPROXY


def test_proxies_wait_longer_than_the_service_works() -> None:
    longest = default("inference_timeout_seconds") + default("decode_timeout_seconds")
    assert number(NGINX, "proxy_read_timeout") > longest
    assert number(HAPROXY, "timeout server") > longest


def test_proxies_close_idle_connections_before_the_service_does() -> None:
    upstream = NGINX[NGINX.index("upstream dropserve") : NGINX.index("server {")]
    assert number(upstream, "keepalive_timeout") < default("keep_alive_seconds")
    purge = re.search(r"pool-purge-delay (\d+)s", HAPROXY)
    assert purge is not None
    assert int(purge[1]) < default("keep_alive_seconds")


def test_proxies_hurry_clients_as_the_service_does() -> None:
    head, body = default("head_timeout_seconds"), default("body_timeout_seconds")
    assert number(NGINX, "client_header_timeout") == number(HAPROXY, "timeout http-request") == head
    assert number(NGINX, "client_body_timeout") == number(HAPROXY, "timeout client") == body


def test_haproxy_sends_a_replica_what_it_takes_of_one_client() -> None:
    share = default("max_concurrent_requests") * 3 // 4
    assert f"maxconn {share} " in HAPROXY


def test_unit_gives_the_service_time_to_end_and_descriptors_for_its_connections() -> None:
    assert number(UNIT, "TimeoutStopSec") > default("grace_seconds") + 5
    assert number(UNIT, "LimitNOFILE") > default("max_connections") + _OTHER_DESCRIPTORS


def test_unit_names_settings_that_exist() -> None:
    names = re.findall(r"DROPSERVE_([A-Z_]+)=", "".join(unit_values("Environment")))
    assert {name.lower() for name in names} <= set(ServiceSettings.model_fields)


@pytest.mark.parametrize(
    "file",
    sorted(each for each in DEPLOY.rglob("*") if each.suffix in (".conf", ".cfg", ".service")),
)
def test_page_names_each_file(file: Any) -> None:
    assert f"{file.relative_to(ROOT)}" in PAGE
