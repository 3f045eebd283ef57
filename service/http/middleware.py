"""What happens around every request: its id, its log line, its metrics, and admission.

It knows no route's meaning.
"""

import asyncio
import logging
import re
import time
from contextvars import Context
from functools import partial
from random import getrandbits

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import DropserveError
from service.errors import InvalidQueryError, OverloadedError, StoppingError
from service.http.asgi_request import CLIENT, HUNG_UP, KEY_NAME, REFUSED
from service.http.client_quotas import CURRENT_CLIENT, Client, Clients
from service.http.error_responses import domain_error_response, internal_error
from service.http.fast_path.fast_path_route import Endpoint
from service.http.query_limits import check_query
from service.http.request_body import header
from service.http.request_head_checks import INSPECTED, HeaderLines, HeadInspector, InspectedHead
from service.http.response_headers import API_HEADERS
from service.observability import log_format
from service.observability.metrics_recorder import Metrics
from service.observability.request_log import RequestRecord
from service.tracing.request_trace import CURRENT_TRACE, CURRENT_TRACE_ID, HttpFacts, RequestTrace
from service.tracing.trace_context import format_response, parse_parent
from service.tracing.tracer import Tracer

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = "dropserve.request_id"
"""The key of the request id in an ASGI scope."""

STARTED = "dropserve.started"
"""The key of the time at which the head was complete, in seconds of `time.perf_counter`."""
HUNG_UP_STATUS = 499
"""The status that is recorded where the client hung up before its response, as nginx does."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_BITS = 128
_UNMATCHED = "unmatched"
_UNLIMITED = ("/health/", "/v2/health/", "/metrics")
"""Paths that are answered however many requests are in flight."""
_OVERLOADED = "The server answers as many requests as it can already; try again in a second."
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))
_HEADER = REQUEST_ID_HEADER.lower().encode()
_TRACE_PARENT, _TRACE_STATE, _TRACE_RESPONSE = b"traceparent", b"tracestate", b"traceresponse"

logger = structlog.stdlib.get_logger("service")
_standard_logger = logging.getLogger("service")


class RequestMiddleware:
    """ASGI middleware, and the `RequestHandler` of the fast path.

    An unexpected error becomes a 500 here, with a traceback in the log.
    """

    def __init__(
        self,
        metrics: Metrics,
        clients: Clients,
        inspector: HeadInspector,
        tracer: Tracer | None = None,
    ) -> None:
        """Serve with these; tracer: None: no request is traced."""
        self._metrics = metrics
        self._clients = clients
        self._inspector = inspector
        self._tracer = tracer
        # Built once, since a refusal must cost little while the service is overloaded.
        self._refusal = domain_error_response(OverloadedError(_OVERLOADED))
        metrics.deferred.add_gauge_source(metrics.requests_in_flight, lambda: clients.requests)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI application that serves `app` with all of this around it."""
        return partial(self._serve, app)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; pass any other event on."""
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        head = self.inspect(scope)
        sender = _ResponseSender(send, [*head.response_headers, *self._begin(scope)])
        admission = _Admission(self._clients, scope, receive)
        try:
            if head.answer is not None:
                await head.answer(scope, admission.receive, sender.send)
            else:
                await self._answer(app, scope, admission, sender)
        finally:
            admission.end()
            if REFUSED not in scope:  # which is recorded already
                has_hung_up = bool(scope.get(HUNG_UP))
                status = HUNG_UP_STATUS if has_hung_up else sender.status or HUNG_UP_STATUS
                self.record(scope, status)

    def inspect(self, scope: Scope) -> InspectedHead:
        """Write into a scope what is decided by the head alone, and return it."""
        scope[INSPECTED] = head = self._inspector.inspect(scope)
        return head

    async def respond(self, endpoint: Endpoint, request: Request) -> Response:
        """Return the response to a request whose body is complete; then `record` it."""
        added_headers = self._begin(request.scope)
        clients = self._clients
        client: Client = request.scope[CLIENT]
        head: InspectedHead = request.scope[INSPECTED]
        if head.answer is not None:
            response = _copy(head.answer)
        elif not clients.admits(client):
            response = _copy(self._refusal)
        else:
            clients.begin_request(client)
            try:
                response = await self._response(endpoint, request)
            finally:
                clients.end_request(client)
        response.raw_headers = [
            *response.raw_headers,
            *API_HEADERS,
            *head.response_headers,
            *added_headers,
        ]
        return response

    def refuse(self, scope: Scope, response: Response) -> Response:
        """Give a refusal of the HTTP protocol the headers that every response has, and record it.

        The request may be no request at all, so it gets no trace.
        """
        return Context().run(self._refuse, scope, response)  # without ids of another request

    def _refuse(self, scope: Scope, response: Response) -> Response:
        self.inspect(scope)
        request_id = _assign_request_id(scope)
        response.raw_headers += [*API_HEADERS, (_HEADER, request_id.encode())]
        self.record(scope, response.status_code)
        return response

    def _begin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Give a request its ids; return the headers by which its response tells them."""
        headers = [(_HEADER, _assign_request_id(scope).encode())]
        sent = header(scope, _TRACE_PARENT)
        if sent is not None or self._tracer is not None or CURRENT_TRACE_ID.get() is not None:
            trace = self._begin_trace(scope, sent)
            if trace is not None:
                headers.append((_TRACE_RESPONSE, format_response(trace.trace_id, trace.span_id)))
        return headers

    def _begin_trace(self, scope: Scope, sent: str | None) -> RequestTrace | None:
        """Begin the trace of a request with this `traceparent`; None: it is not sampled."""
        parent = None if sent is None else parse_parent(sent)
        trace = None
        if self._tracer is not None and not scope["path"].startswith(_UNLIMITED):
            trace = self._tracer.begin(parent, sent and header(scope, _TRACE_STATE))
        # Both are set in any case: a request that has waited begins in the context of another one.
        known = trace or parent
        CURRENT_TRACE.set(trace)
        CURRENT_TRACE_ID.set(None if known is None else known.trace_id)
        return trace

    async def _response(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            try:
                return await endpoint(request)
            except DropserveError as error:
                return domain_error_response(error)
        except asyncio.CancelledError:
            return domain_error_response(StoppingError())
        except Exception:
            logger.exception("request failed", method=request.method, path=request.url.path)
            return internal_error()

    async def _answer(
        self,
        app: ASGIApp,
        scope: Scope,
        admission: "_Admission",
        sender: "_ResponseSender",
    ) -> None:
        if not admission.is_admitted:
            await self._refusal(scope, admission.receive, sender.send)
            return
        try:
            check_query(scope["query_string"])  # before anything parses it
        except InvalidQueryError as error:
            await domain_error_response(error)(scope, admission.receive, sender.send)
            return
        # The response to HEAD is the head of the response to GET (RFC 9110, 9.3.2); the HTTP
        # protocol leaves the body out.
        scope_of_get = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await app(scope_of_get, admission.receive, sender.send)
        except asyncio.CancelledError:
            if sender.status is not None or scope.get(HUNG_UP):
                raise
            stopping = domain_error_response(StoppingError())
            await stopping(scope, admission.receive, sender.send)
        except Exception:
            logger.exception("request failed", method=scope["method"], path=scope["path"])
            if sender.is_complete:
                return
            if sender.status is not None:
                raise  # half of a response is sent: the server closes the connection
            await internal_error()(scope, admission.receive, sender.send)
        finally:
            for key in ("route", KEY_NAME):
                if key in scope_of_get:
                    scope[key] = scope_of_get[key]

    def record(self, scope: Scope, status: int) -> None:
        """Count a request, log it and have it traced, once its response is sent."""
        ended = time.perf_counter()
        seconds = ended - scope[STARTED]
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        is_known = route != _UNMATCHED and scope["method"] in _METHODS
        # Clients can invent paths and methods, and each would become a time series.
        method = scope["method"] if is_known else "any"
        metrics = self._metrics
        metrics.deferred.defer(metrics.count_request, route, method, status, seconds)
        trace = CURRENT_TRACE.get()
        if trace is not None and self._tracer is not None:
            metrics.exemplars.note(route, seconds, trace.trace_id)
            self._tracer.end(trace, _http_facts(scope, status, ended))
        level = logging.DEBUG if scope["path"].startswith(_UNLIMITED) else logging.INFO
        if _standard_logger.isEnabledFor(level):
            _standard_logger.handle(
                RequestRecord(
                    level,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round(1000 * seconds, 2),
                    request_id=log_format.CURRENT_REQUEST_ID.get(),
                    key=scope.get(KEY_NAME),
                    client=scope[INSPECTED].address,
                    trace_id=CURRENT_TRACE_ID.get(),
                )
            )


def _copy(response: Response) -> Response:
    """Return a copy of a response; copy() takes several times as long."""
    copied = Response.__new__(Response)
    vars(copied).update(vars(response))
    return copied


def well_formed_id(sent_id: str | None) -> str:
    """Return the id that a request came with if it is well formed, else a new one."""
    if sent_id and _GOOD_ID.fullmatch(sent_id):
        return sent_id
    return f"{getrandbits(_ID_BITS):032x}"


def _assign_request_id(scope: Scope) -> str:
    """Return the id of a request: the one it came with if that is well formed, else a new one."""
    sent_id = header(scope, _HEADER)
    if sent_id and "," in sent_id:  # of several headers the first counts
        sent_id = next(str(value, "latin-1") for name, value in scope["headers"] if name == _HEADER)
    request_id = well_formed_id(sent_id)
    if STARTED not in scope:
        scope[STARTED] = time.perf_counter()
    scope[REQUEST_ID] = sent_id or request_id  # also a malformed one: the canary split hashes it
    log_format.CURRENT_REQUEST_ID.set(request_id)  # in this request's context
    CURRENT_CLIENT.set(scope.get(CLIENT))
    return request_id


def _http_facts(scope: Scope, status: int, ended: float) -> HttpFacts:
    """Return what the span of an answered request says of it."""
    query: bytes = scope["query_string"]
    return HttpFacts(
        method=scope["method"],
        scheme=scope["scheme"],
        path=scope["path"],
        query=query.decode("latin-1"),
        route=getattr(scope.get("route"), "path", None),
        version=scope["http_version"],
        status=None if status == HUNG_UP_STATUS else status,
        user_agent=header(scope, b"user-agent"),
        request_id=log_format.CURRENT_REQUEST_ID.get(),
        started=scope[STARTED],
        ended=ended,
    )


class _Admission:
    """Counts one request among those in flight, from the moment its body is complete.

    A client that sends its body slowly, or not at all, is not counted.
    """

    __slots__ = ("_client", "_clients", "_is_counted", "_receive", "is_admitted")

    def __init__(self, clients: Clients, scope: Scope, receive: Receive) -> None:
        self._clients = clients
        self._client: Client = scope.get(CLIENT, clients.trusted)
        self._receive = receive
        self._is_counted = scope["path"].startswith(_UNLIMITED)  # which is never refused
        self.is_admitted = self._is_counted or clients.admits(self._client)
        if self._is_counted:
            self._client = clients.trusted
            clients.begin_request(self._client)
        elif self.is_admitted and not _has_body(scope):
            self._count()

    async def receive(self) -> Message:
        """Receive a part of the request; with the last one, count the request as in flight.

        Raises:
            OverloadedError: too many requests are in flight.
        """
        message = await self._receive()
        if (
            not self._is_counted
            and message["type"] == "http.request"
            and not message.get("more_body")
            and self.is_admitted
        ):
            if not self._clients.admits(self._client):
                raise OverloadedError(_OVERLOADED)
            self._count()
        return message

    def end(self) -> None:
        """Count the request no more."""
        if self._is_counted:
            self._is_counted = False
            self._clients.end_request(self._client)

    def _count(self) -> None:
        self._is_counted = True
        self._clients.begin_request(self._client)


def _has_body(scope: Scope) -> bool:
    length = header(scope, b"content-length")
    return length not in (None, "0") or header(scope, b"transfer-encoding") is not None


class _ResponseSender:
    """Sends one response: adds headers to its head and remembers its status."""

    __slots__ = ("_added_headers", "_send", "is_complete", "status")

    def __init__(self, send: Send, added_headers: HeaderLines) -> None:
        self._send = send
        self._added_headers = added_headers
        self.status: int | None = None
        self.is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            is_page = any(name == API_HEADERS[0][0] for name, _ in headers)
            own = [] if is_page else API_HEADERS
            message["headers"] = [*headers, *own, *self._added_headers]
        elif not message.get("more_body"):
            self.is_complete = True
        await self._send(message)
