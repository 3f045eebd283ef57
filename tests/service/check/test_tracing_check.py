"""The check of OpenTelemetry's variables, with a collector of the tests."""

import socket

import pytest

from service.check.tracing_check import check_tracing
from service.settings import ServiceSettings
from service.tracing import tracer
from service.tracing.trace_settings import ENDPOINTS
from tests.service.check.test_checks import FINE, WARNING, check_found
from tests.service.tracing.collector import collecting

TRACES, ALL = ENDPOINTS


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)


def test_service_that_traces_nothing_has_no_finding() -> None:
    assert list(check_tracing(ServiceSettings())) == []


def test_collector_that_listens_is_fine_and_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(ALL, collector.url)
        check_found(check_tracing(ServiceSettings()), (FINE, "a collector listens at 127.0.0.1:…."))
        monkeypatch.delenv(ALL)
        monkeypatch.setenv(TRACES, collector.url)
        sentence = f"{TRACES} is used as it stands, without a path; write …{collector.url} with …"
        check_found(check_tracing(ServiceSettings()), (WARNING, sentence))
        assert collector.headers == []


def test_traces_that_cannot_be_sent_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALL, "collector:4318")
    check_found(check_tracing(ServiceSettings()), (WARNING, f"{ALL} is no URL; write …"))
    monkeypatch.setenv(ALL, "http://127.0.0.1:port")
    check_found(check_tracing(ServiceSettings()), (WARNING, f"{ALL} is no URL; write …"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv(ALL, url)
    refused = f"{url[7:]} does not answer (Connection refused), and …; start the collector, or …"
    check_found(check_tracing(ServiceSettings()), (WARNING, refused))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    sdk = "OpenTelemetry's SDK refuses what the variables OTEL_… say (…); correct them, or …"
    check_found(check_tracing(ServiceSettings()), (WARNING, sdk))
    monkeypatch.setattr(tracer, "_PACKAGES", ("opentelemetry.nowhere",))
    absent = f"{ALL} is set, but the packages that send traces are not installed; add them …"
    check_found(check_tracing(ServiceSettings()), (WARNING, absent))
