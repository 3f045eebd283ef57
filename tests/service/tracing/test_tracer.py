"""The tracer at the start of the service: what it says, and that nothing is imported when off."""

import pytest
from structlog.testing import capture_logs

from service.tracing import tracer
from service.tracing.tracer import Tracer, log_settings

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def logged() -> list[dict[str, object]]:
    with capture_logs() as lines:
        log_settings()
    return [dict(each) for each in lines]


def test_start_says_what_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    expected = {"event": "tracing", "sampler": "traceidratio", "ratio": 0.1, "log_level": "info"}
    assert logged() == [expected]


def test_start_says_in_one_sentence_that_the_packages_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setattr(tracer, "_PACKAGES", ("opentelemetry.nowhere.at_all",))
    (line,) = logged()
    assert line["problem"] == (
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages that send traces are not installed; "
        "add them with pip install '.[tracing]', or unset it."
    )
    assert Tracer.of({ENDPOINT: "http://127.0.0.1:4318"}) is None


def test_start_says_nothing_where_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert logged() == []
    assert Tracer.of({}) is None


def test_endpoint_that_is_no_url_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "localhost:4318")
    (line,) = logged()
    assert str(line["problem"]).endswith("is no URL; write http://HOST:4318, or with https://.")
