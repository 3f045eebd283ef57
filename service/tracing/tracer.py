"""Traces requests: decides which are sampled, and has their spans made and sent.

opentelemetry is imported here only where the environment asks for traces.
"""

import asyncio
import os
from collections.abc import Mapping
from importlib.util import find_spec
from random import getrandbits
from typing import TYPE_CHECKING, Self

import structlog

from service.tracing.request_trace import HttpFacts, RequestTrace
from service.tracing.trace_context import TraceParent, parse_state
from service.tracing.trace_settings import EXTRA, Sampler, TraceSettings

if TYPE_CHECKING:
    from service.tracing.span_export import SpanExport

_TRACE_ID_BITS = 128
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_NOT_INSTALLED = (
    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages that send traces are not installed; add "
    f"them with {EXTRA}, or unset it."
)

logger = structlog.stdlib.get_logger("service")


class Tracer:
    """Traces the requests of one process."""

    def __init__(self, sampler: Sampler) -> None:
        """Send nothing yet; `start` begins that."""
        self._sampler = sampler
        self._export: SpanExport | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the tracer that OpenTelemetry's variables describe; None: nothing is traced."""
        sampler = TraceSettings.of(environment).sampler
        if sampler is None or not _is_installed():
            return None

        return cls(sampler)

    def start(self) -> "SpanExport | None":
        """Start the thread that sends spans, in the process that serves; return what it counts.

        None: the SDK refuses a variable, which is logged, and nothing is traced.
        """
        try:
            self._export = _new_export()
        except Exception as refusal:  # whatever a variable makes the SDK raise, the service serves
            logger.warning("no traces", problem=_refusal(refusal))
        return self._export

    def begin(self, parent: TraceParent | None, state: str | None) -> RequestTrace | None:
        """Return the trace of a request that begins; None: it is not sampled.

        parent, state: its `traceparent` and `tracestate`.
        """
        if self._export is None:
            return None
        if parent is None:
            trace_id = getrandbits(_TRACE_ID_BITS) or 1
            if not self._sampler.samples(trace_id, None):
                return None
            return RequestTrace(f"{trace_id:032x}", None, ())
        if not self._sampler.samples(int(parent.trace_id, 16), parent):
            return None
        members = () if state is None else parse_state(state)
        return RequestTrace(parent.trace_id, parent.span_id, members)

    def end(self, trace: RequestTrace, facts: HttpFacts) -> None:
        """Queue an answered request in the next iteration of the event loop.

        Until then the batcher has noted a run that it has made inline.
        """
        asyncio.get_running_loop().call_soon(self._send, trace, facts)

    def _send(self, trace: RequestTrace, facts: HttpFacts) -> None:
        if self._export is None:
            return
        try:
            self._export.put(trace, facts)
        except Exception:  # whatever a request holds, no other may suffer
            logger.exception("a request is not traced")

    def close(self) -> None:
        """Send what waits, for a short time."""
        if self._export is not None:
            self._export.close()


def log_settings() -> None:
    """Log once, before any worker starts, what is traced, or why nothing is though it should be."""
    settings = TraceSettings.of(os.environ)
    for problem in settings.problems:
        logger.warning("traces", problem=problem)
    if settings.sampler is None:
        return
    if not _is_installed():
        logger.warning("no traces", problem=_NOT_INSTALLED)
        return
    logger.info("tracing", sampler=settings.sampler.name, ratio=settings.sampler.ratio)


def why_nothing_is_sent() -> str | None:
    """Try to prepare what sends traces; return in one sentence why that fails, None if it does not.

    Nothing is sent. Call it where the environment asks for traces.
    """
    if not _is_installed():
        return _NOT_INSTALLED
    try:
        _new_export().close()
    except Exception as refusal:  # as in `Tracer.start`
        return _refusal(refusal)
    return None


def _new_export() -> "SpanExport":
    from service.tracing.span_export import SpanExport
    from service.tracing.spans import describe_service

    return SpanExport(describe_service())


def _refusal(reason: Exception) -> str:
    return (
        f"OpenTelemetry's SDK refuses what the variables OTEL_… say ({reason}); correct them, or "
        "unset them."
    )


def _is_installed() -> bool:
    try:
        return all(find_spec(each) is not None for each in _PACKAGES)
    except ModuleNotFoundError:  # not even a package above them
        return False
