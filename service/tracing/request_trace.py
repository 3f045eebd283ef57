"""What is noted of one request for its spans, while it is answered. Makes no span."""

import time
from contextvars import ContextVar
from random import getrandbits
from typing import NamedTuple, Protocol

MAX_RUNS, MAX_LINKS = 32, 8
"""Most runs of one request that become spans, and most links of one span: a long request takes many
runs, and a run may have 64 requests."""

_SPAN_ID_BITS = 64


class Run(NamedTuple):
    """One inference run, as one of its requests sees it. Times are of `time.perf_counter`."""

    queued_at: float
    started: float
    trunk_ended: float
    ended: float
    has_head: bool
    """Whether the head ran with dropout active."""
    rows: int
    """Images of all requests of the run."""
    requests: int
    sampled: tuple[tuple[str, str], ...]
    """Trace and span ids of its first sampled requests, this one perhaps among them. Ids, since
    traces that refer to each other would be left to the garbage collector."""


class HttpFacts(NamedTuple):
    """What HTTP says of an answered request. Times are of `time.perf_counter`."""

    method: str
    scheme: str
    path: str
    query: str
    route: str | None
    """The path of its route; None: there is no such route."""
    version: str
    status: int | None
    """None: the client hung up before the response."""
    user_agent: str | None
    request_id: str | None
    started: float
    ended: float


class RequestTrace:
    """A sampled request: its place in a trace, and the times of its stages.

    Times are seconds of `time.perf_counter`; None: the request has not come so far.
    """

    __slots__ = (
        *("body_read", "decoded", "images", "model", "parent_id"),
        *("runs", "span_id", "state", "trace_id", "version"),
    )

    def __init__(
        self, trace_id: str, parent_id: str | None, state: tuple[tuple[str, str], ...]
    ) -> None:
        """Begin with nothing noted.

        parent_id: of the caller's span; None: the request begins its trace.
        state: members of `tracestate`, which are passed on as they are.
        """
        self.trace_id = trace_id
        self.span_id = new_span_id()
        self.parent_id = parent_id
        self.state = state
        self.body_read: float | None = None
        """When the body was there; from then on it is decoded."""
        self.decoded: float | None = None
        self.images = 0
        self.model = self.version = ""
        self.runs: list[Run] = []

    def note_run(self, run: Run) -> None:
        """Note a run that had images of this request."""
        if len(self.runs) < MAX_RUNS:
            self.runs.append(run)


class SpanCounts(Protocol):
    """What became of spans, since the process began to send them."""

    @property
    def sent(self) -> int:
        """How many the collector has taken."""
        ...

    @property
    def failed(self) -> int:
        """How many were sent in vain."""
        ...

    @property
    def dropped(self) -> int:
        """How many were not even sent, since too many waited."""
        ...


CURRENT_TRACE: ContextVar[RequestTrace | None] = ContextVar("trace", default=None)
"""The trace of the request that the current task answers; None: it is not sampled."""
CURRENT_TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The trace id of log lines: that of a sampled request, or the one that it came with."""


def mark_body_read() -> None:
    """Note that the body of the current request is there."""
    trace = CURRENT_TRACE.get()
    if trace is not None:
        trace.body_read = time.perf_counter()


def mark_decoded(images: int) -> None:
    """Note that the images of the current request are decoded."""
    trace = CURRENT_TRACE.get()
    if trace is not None:
        trace.decoded, trace.images = time.perf_counter(), images


def new_span_id() -> str:
    """Return a random span id, 16 hexadecimal digits, not all 0."""
    return f"{getrandbits(_SPAN_ID_BITS) or 1:016x}"
