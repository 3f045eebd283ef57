"""Encodes the spans of requests from what was noted of them. Imports the OpenTelemetry SDK.

They are encoded together, on the thread that sends them, and what requests have in common is
encoded once. The SDK's own tracer and exporter take six times as long for each span, and half of
that while the request is answered.
"""

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from service import API_VERSION
from service.tracing.request_trace import (
    MAX_LINKS,
    HttpFacts,
    RequestTrace,
    Run,
    new_span_id,
)

_SCHEMA = "https://opentelemetry.io/schemas/1.37.0"
"""The semantic conventions by which attributes are named; those of HTTP are stable since 1.23."""
_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
_OTHER_METHOD = "_OTHER"
_MAX_CHARACTERS = 256
"""Most characters of a text that a client has chosen."""
_REMEMBERED = 256
_HUNG_UP = "client_hung_up"
_SERVER_ERROR = 500
_NANOSECONDS = 1e9
_CONTEXT = SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED))
"""Of every `SampledRequest`, so that the SDK queues it."""
_IS_REMOTE_KNOWN: int = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE: int = _IS_REMOTE_KNOWN | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK

Attributes = tuple[tuple[str, str | int], ...]


def describe_service() -> Resource:
    """Return the resource of all spans, from the environment where that names it."""
    given = OTELResourceDetector().detect().attributes
    ours = {"service.name": "dropserve", "service.version": API_VERSION}
    return Resource.create({name: ours[name] for name in ours if name not in given})


class SampledRequest(ReadableSpan):
    """A request whose spans wait in the SDK's queue to be encoded."""

    def __init__(self, trace: RequestTrace, facts: HttpFacts, resource: Resource) -> None:
        super().__init__("request", _CONTEXT, resource=resource)
        self.trace, self.facts = trace, facts
        self.clock = time.time_ns() - time.perf_counter_ns()
        """When `time.perf_counter` was 0, nanoseconds since 1970."""


class SpanEncoder:
    """Encodes the spans of one service."""

    def __init__(self, resource: Resource) -> None:
        """Encode what they all have in common."""
        scope = InstrumentationScope("dropserve", API_VERSION, _SCHEMA)
        example = ReadableSpan("", _CONTEXT, None, resource, instrumentation_scope=scope)
        self._empty = encode_spans([example])
        del self._empty.resource_spans[0].scope_spans[0].spans[:]

    def encode(self, requests: Sequence[SampledRequest]) -> bytes:
        """Return the body of an export of the spans of some requests."""
        export = ExportTraceServiceRequest()
        export.CopyFrom(self._empty)
        spans = export.resource_spans[0].scope_spans[0].spans
        for request in requests:
            spans.extend(_spans(request))
        body: bytes = export.SerializeToString()
        return body


def count_spans(request: SampledRequest) -> int:
    """Return how many spans a request has."""
    trace = request.trace
    return 1 + _has_decoding(trace) + sum(2 + run.has_head for run in trace.runs)


def _spans(request: SampledRequest) -> Iterator[Span]:
    """Yield the span of a request, then that of each of its stages, its children."""
    trace, facts, clock = request.trace, request.facts, request.clock
    trace_id, own_id = bytes.fromhex(trace.trace_id), bytes.fromhex(trace.span_id)
    state = ",".join([f"{name}={value}" for name, value in trace.state])

    def child(name: str, start: float, end: float, attributes: Attributes = ()) -> Span:
        span = Span(
            trace_id=trace_id,
            span_id=bytes.fromhex(new_span_id()),
            trace_state=state,
            parent_span_id=own_id,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=clock + int(start * _NANOSECONDS),
            end_time_unix_nano=clock + int(end * _NANOSECONDS),
            flags=_IS_REMOTE_KNOWN,
        )
        if attributes:
            span.MergeFromString(_encoded(attributes))
        return span

    yield _request_span(request, state)
    if trace.body_read is not None and _has_decoding(trace):
        yield child("decode", trace.body_read, trace.decoded or facts.ended)
    for run in trace.runs:
        of_run = (("dropserve.run.images", run.rows), ("dropserve.run.requests", run.requests))
        yield child("queue", run.queued_at, run.started)
        trunk = child("trunk", run.started, run.trunk_ended, of_run)
        trunk.links.extend(_links(run, trace))
        yield trunk
        if run.has_head:
            yield child("head", run.trunk_ended, run.ended, of_run)


def _request_span(request: SampledRequest, state: str) -> Span:
    trace, facts, clock = request.trace, request.facts, request.clock
    method = facts.method if facts.method in _METHODS else _OTHER_METHOD
    span = Span(
        trace_id=bytes.fromhex(trace.trace_id),
        span_id=bytes.fromhex(trace.span_id),
        trace_state=state,
        parent_span_id=b"" if trace.parent_id is None else bytes.fromhex(trace.parent_id),
        name=_name(method, facts.route),
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=clock + int(facts.started * _NANOSECONDS),
        end_time_unix_nano=clock + int(facts.ended * _NANOSECONDS),
        flags=_IS_REMOTE_KNOWN if trace.parent_id is None else _IS_REMOTE,
    )
    span.MergeFromString(_encoded(tuple(_attributes(trace, facts, method))))
    if facts.request_id is not None:
        span.attributes.add(key="dropserve.request_id").value.string_value = facts.request_id
    if _is_error(facts.status):
        span.status.code = Status.STATUS_CODE_ERROR
    return span


def _has_decoding(trace: RequestTrace) -> bool:
    return trace.body_read is not None and bool(trace.decoded or trace.model)


@lru_cache(maxsize=_REMEMBERED)
def _encoded(attributes: Attributes) -> bytes:
    """Return the encoding of a span that has nothing but these attributes."""
    pairs = [
        KeyValue(
            key=name,
            value=AnyValue(string_value=value)
            if isinstance(value, str)
            else AnyValue(int_value=value),
        )
        for name, value in attributes
    ]
    encoded: bytes = Span(attributes=pairs).SerializeToString()
    return encoded


def _name(method: str, route: str | None) -> str:
    """Return a name of which there are few: neither path nor method as a client invents them."""
    shown = "HTTP" if method == _OTHER_METHOD else method
    return shown if route is None else f"{shown} {route}"


def _is_error(status: int | None) -> bool:
    return status is None or status >= _SERVER_ERROR


def _attributes(
    trace: RequestTrace, facts: HttpFacts, method: str
) -> Iterator[tuple[str, str | int]]:
    """Yield what many requests have in common."""
    yield "http.request.method", method
    yield "url.scheme", facts.scheme
    yield "url.path", _shortened(facts.path)
    yield "network.protocol.version", facts.version
    if method == _OTHER_METHOD:
        yield "http.request.method_original", _shortened(facts.method)
    if facts.query:
        yield "url.query", _shortened(facts.query)
    if facts.route is not None:
        yield "http.route", facts.route
    if facts.status is not None:
        yield "http.response.status_code", facts.status
    if _is_error(facts.status):
        yield "error.type", _HUNG_UP if facts.status is None else str(facts.status)
    if facts.user_agent is not None:
        yield "user_agent.original", _shortened(facts.user_agent)
    if trace.model:
        yield "dropserve.model", trace.model
        yield "dropserve.version", trace.version
        yield "dropserve.images", trace.images


def _shortened(text: str) -> str:
    """Return what a client has chosen, with what UTF-8 cannot encode replaced."""
    return text[:_MAX_CHARACTERS].encode(errors="replace").decode()


def _links(run: Run, trace: RequestTrace) -> Iterator[Span.Link]:
    """Yield links to the other sampled requests of a run."""
    others = (ids for ids in run.sampled if ids[1] != trace.span_id)
    for trace_id, span_id in islice(others, MAX_LINKS):
        yield Span.Link(
            trace_id=bytes.fromhex(trace_id),
            span_id=bytes.fromhex(span_id),
            flags=_IS_REMOTE_KNOWN,
        )
