"""OpenTelemetry's variables: whether anything is traced, and which requests."""

import random

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from service.tracing.trace_context import TraceParent
from service.tracing.trace_settings import TraceSettings

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        ENDPOINT | {"OTEL_SDK_DISABLED": "True"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_and_nothing_said(environment: dict[str, str]) -> None:
    assert TraceSettings.of(environment) == TraceSettings(None, ())


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is no URL; write http://HOST:4318, or with https://.",
        ),
        (
            ENDPOINT | {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
            "OTEL_TRACES_SAMPLER 'jaeger_remote' is not offered; parentbased_always_on is used.",
        ),
        (
            ENDPOINT | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            "OTEL_TRACES_SAMPLER_ARG 'nan' is no number from 0 to 1; 1 is used.",
        ),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTLP is sent as http/protobuf, not as 'grpc'; see that it fits.",
        ),
        (
            ENDPOINT | {"OTEL_TRACES_EXPORTER": "console"},
            "OTEL_TRACES_EXPORTER is 'console'; traces are sent by otlp alone.",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_said(environment: dict[str, str], sentence: str) -> None:
    assert TraceSettings.of(environment).problems == [sentence]


@pytest.mark.parametrize(
    "name",
    [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ],
)
def test_samplers_decide_as_those_of_the_sdk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: "0.3"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    ours = TraceSettings.of(ENDPOINT | variables).sampler
    theirs = TracerProvider(shutdown_on_exit=False).sampler
    assert ours is not None
    generator = random.Random(0)
    for _ in range(200):
        trace_id = generator.getrandbits(128)
        assert ours.samples(trace_id, None) == sampled(theirs, Context(), trace_id)
        for flag in (0, 1):
            parent = TraceParent(f"{trace_id:032x}", SPAN, bool(flag))
            remote = SpanContext(trace_id, int(SPAN, 16), True, TraceFlags(flag))
            context = set_span_in_context(NonRecordingSpan(remote), Context())
            assert ours.samples(trace_id, parent) == sampled(theirs, context, trace_id)


def sampled(sampler: object, context: Context, trace_id: int) -> bool:
    decision: bool = sampler.should_sample(context, trace_id, "x").decision.is_sampled()  # type: ignore[attr-defined]
    return decision
