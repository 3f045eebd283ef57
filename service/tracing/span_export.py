"""Sends spans to the collector from a thread of its own. Imports the OpenTelemetry SDK.

Requests never wait for it: while the collector is slow or down, spans wait up to a limit, then
whole requests are dropped and counted.
"""

import logging
import os
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from service.once_a_minute import OnceAMinute
from service.tracing.request_trace import HttpFacts, RequestTrace
from service.tracing.spans import SampledRequest, SpanEncoder, count_spans

CLOSING_SECONDS = 2.0
"""The longest that the end of a process waits for the last spans."""

_QUEUE_VARIABLE, _QUEUE_SPANS = "OTEL_BSP_MAX_QUEUE_SIZE", 2048
_SDK_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class SpanExport:
    """The queue, the thread and the connection. Create it in the process that sends."""

    def __init__(self, resource: Resource) -> None:
        """Start the thread; the SDK reads endpoint, headers, timeout and batches from OTEL_…."""
        logging.getLogger(_SDK_LOGGER).addFilter(_FewLines())
        self._resource = resource
        self._exporter = _RequestExporter(resource)
        self._processor = BatchSpanProcessor(self._exporter)
        self._limit = _queue_limit()
        self._put = 0
        self.dropped = 0
        """The spans of requests that were dropped, since too many waited."""

    @property
    def sent(self) -> int:
        """The spans that the collector has taken."""
        return self._exporter.sent

    @property
    def failed(self) -> int:
        """The spans that the collector has not taken in time, and that are gone."""
        return self._exporter.failed

    def put(self, trace: RequestTrace, facts: HttpFacts) -> None:
        """Queue the spans of a request, or drop them where too many requests wait; never block."""
        request = SampledRequest(trace, facts, self._resource)
        if self._put - self._exporter.taken >= self._limit:
            self.dropped += count_spans(request)
            return
        self._put += 1
        self._processor.on_end(request)

    def close(self) -> None:
        """Send what waits, for at most CLOSING_SECONDS; drop the rest."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()  # ends the pause between two attempts


class _RequestExporter(OTLPSpanExporter):
    """The SDK's exporter for whole requests. One thread at a time exports."""

    def __init__(self, resource: Resource) -> None:
        super().__init__()
        self._encoder = SpanEncoder(resource)
        self._send = self._client.export  # missing in another version: found at the start
        self._is_closed = False
        self.taken = 0
        """The requests that have left the queue."""
        self.sent = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans of some requests; wait and try again as the SDK does."""
        requests = [each for each in spans if isinstance(each, SampledRequest)]
        self.taken += len(requests)
        count = sum(map(count_spans, requests))
        has_succeeded = False
        try:
            has_succeeded = self._send(self._encoder.encode(requests)).success
        finally:
            if has_succeeded:
                self.sent += count
            else:
                self.failed += count
        return SpanExportResult.SUCCESS if has_succeeded else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Close the connection, once."""
        if not self._is_closed:
            self._is_closed = True
            super().shutdown()  # type: ignore[no-untyped-call]


class _FewLines(logging.Filter):
    """Lets one line a minute pass: a collector that is down fails each batch anew."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = OnceAMinute()

    def filter(self, _record: logging.LogRecord) -> bool:
        return self._limit.may_log()


def _queue_limit() -> int:
    try:
        return int(os.environ.get(_QUEUE_VARIABLE, _QUEUE_SPANS))
    except ValueError:
        return _QUEUE_SPANS  # as the SDK does
