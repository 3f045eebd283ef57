"""Around every request: its id, its log line, its metrics, the limit on how many at once.

Knows no route's meaning.
"""

import asyncio
import logging
import re
import time
from random import getrandbits

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import DropserveError
from service.errors import InvalidQueryError, NotReadyError, OverloadedError
from service.http.body import header
from service.http.clients import CURRENT, Client, Clients
from service.http.fast_path.route_cache import Endpoint, RouteCache, RouteMatch
from service.http.protocol import CLIENT, HUNG_UP
from service.http.queries import check_query
from service.http.responses import domain_error_response, internal_error
from service.observability import logs
from service.observability.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = "dropserve.request_id"
"""Where the scope has it."""

STARTED = "dropserve.started"
"""Where the scope has when its head was whole, seconds of `time.perf_counter`."""
HUNG_UP_STATUS = 499
"""Status where the client did, before an answer, as nginx has it."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_BITS = 128
_UNMATCHED = "unmatched"
_STOPPING = "The server is stopping; send the request to another."
"""Said where an answer was cancelled: the grace after SIGTERM is over."""
_UNLIMITED = ("/health/", "/v2/health/", "/metrics")
"""Paths that are answered however much there is to do."""
_OVERLOADED = "The server answers as many requests as it can already; try again in a second."
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))
_HEADER = REQUEST_ID_HEADER.lower().encode()

logger = structlog.stdlib.get_logger("service")
_levels = logging.getLogger("service")


class RequestMiddleware:
    """ASGI middleware; an error nobody foresaw ends here as a 500 with a traceback in the log."""

    def __init__(
        self, app: ASGIApp, express: RouteCache, metrics: Metrics, clients: Clients
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clients = clients
        # Made once: where there is too much to do, to say so must cost little.
        self._refusal = domain_error_response(OverloadedError(_OVERLOADED))
        metrics.tally.show(metrics.in_hand, lambda: clients.requests)
        self.express = express
        """Routes of the application that are answered without it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is no HTTP request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        express = None
        if not scope["query_string"]:
            express = self.express.find(scope["method"], scope["path"])
        exchange = _Exchange(send, _begin(scope))
        admission = _Admission(self._clients, scope, receive)
        try:
            if express is not None:
                express.note(scope)
            await self._answer(scope, express, admission, exchange)
        finally:
            admission.end()
            is_gone = bool(scope.get(HUNG_UP))
            self.record(scope, HUNG_UP_STATUS if is_gone else exchange.status or HUNG_UP_STATUS)

    async def respond(self, endpoint: Endpoint, request: Request) -> Response:
        """Answer a request whose body is whole; `record` that afterwards."""
        request_id = _begin(request.scope)
        clients = self._clients
        client: Client = request.scope[CLIENT]
        if not clients.admits(client):
            response = Response.__new__(Response)
            vars(response).update(vars(self._refusal))  # copy() takes several times as long
        else:
            clients.begin(client)
            try:
                response = await self._response(endpoint, request)
            finally:
                clients.end(client)
        response.raw_headers = [*response.raw_headers, (_HEADER, request_id.encode())]
        return response

    async def _response(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            try:
                return await endpoint(request)
            except DropserveError as error:
                return domain_error_response(error)
        except asyncio.CancelledError:
            return domain_error_response(NotReadyError(_STOPPING))
        except Exception:
            logger.exception("request failed", method=request.method, path=request.url.path)
            return internal_error()

    async def _answer(
        self,
        scope: Scope,
        express: RouteMatch | None,
        admission: "_Admission",
        exchange: "_Exchange",
    ) -> None:
        if not admission.is_possible:
            await self._refusal(scope, admission.receive, exchange.send)
            return
        try:
            check_query(scope["query_string"])  # before anything reads it
        except InvalidQueryError as error:
            await domain_error_response(error)(scope, admission.receive, exchange.send)
            return
        if express is not None:
            request = Request(scope, admission.receive)
            response = await self._response(express.endpoint, request)
            await response(scope, admission.receive, exchange.send)
            return
        # What HEAD is answered with is the head of what GET is answered with (RFC 9110, 9.3.2); the
        # server leaves the body out.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(asked, admission.receive, exchange.send)
        except asyncio.CancelledError:
            if exchange.status is not None or scope.get(HUNG_UP):
                raise
            stopping = domain_error_response(NotReadyError(_STOPPING))
            await stopping(scope, admission.receive, exchange.send)
        except Exception:
            logger.exception("request failed", method=scope["method"], path=scope["path"])
            if exchange.is_whole:  # FastAPI has answered for it already
                return
            if exchange.status is not None:
                raise  # half an answer is out: let the server cut the connection
            await internal_error()(scope, admission.receive, exchange.send)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]

    def record(self, scope: Scope, status: int) -> None:
        """Count a request, and write its line, once it is answered."""
        seconds = time.perf_counter() - scope[STARTED]
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        is_known = route != _UNMATCHED and scope["method"] in _METHODS
        method = scope["method"] if is_known else "any"  # both could be invented
        metrics = self._metrics
        metrics.tally.later(metrics.answered, route, method, status, seconds)
        if _levels.isEnabledFor(logging.INFO):
            level = logging.DEBUG if scope["path"].startswith(_UNLIMITED) else logging.INFO
            logger.log(
                level,
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 2),
            )


def _begin(scope: Scope) -> str:
    """Give the request the id that it came with, if that is a good one, or else another."""
    given = header(scope, _HEADER)
    if given and "," in given:  # of several lines the first counts
        given = next(str(value, "latin-1") for name, value in scope["headers"] if name == _HEADER)
    is_good = given and _GOOD_ID.fullmatch(given)
    request_id = given if given and is_good else f"{getrandbits(_ID_BITS):032x}"
    if STARTED not in scope:
        scope[STARTED] = time.perf_counter()
    scope[REQUEST_ID] = given or request_id  # as it was given, odd or not: canaries hash it
    logs.REQUEST_ID.set(request_id)  # of this request's context
    CURRENT.set(scope.get(CLIENT))
    return request_id


class _Admission:
    """One request's place among those that are being answered; taken once its body is whole.

    A client that sends its body slowly, or not at all, takes no place.
    """

    __slots__ = ("_client", "_clients", "_has_place", "_receive", "is_possible")

    def __init__(self, clients: Clients, scope: Scope, receive: Receive) -> None:
        self._clients = clients
        self._client: Client = scope.get(CLIENT, clients.trusted)
        self._receive = receive
        self._has_place = scope["path"].startswith(_UNLIMITED)  # which needs none
        self.is_possible = self._has_place or clients.admits(self._client)
        if self._has_place:
            self._client = clients.trusted
            clients.begin(self._client)
        elif self.is_possible and not _has_body(scope):
            self._take()

    async def receive(self) -> Message:
        """Receive a part of the request, and take the place with the last one.

        Raises:
            OverloadedError: there is none any more.
        """
        message = await self._receive()
        if (
            not self._has_place
            and message["type"] == "http.request"
            and not message.get("more_body")
            and self.is_possible
        ):
            if not self._clients.admits(self._client):
                raise OverloadedError(_OVERLOADED)
            self._take()
        return message

    def end(self) -> None:
        """Give the place back."""
        if self._has_place:
            self._has_place = False
            self._clients.end(self._client)

    def _take(self) -> None:
        self._has_place = True
        self._clients.begin(self._client)


def _has_body(scope: Scope) -> bool:
    length = header(scope, b"content-length")
    return length not in (None, "0") or header(scope, b"transfer-encoding") is not None


class _Exchange:
    """One request's answer on its way out: adds the id, remembers the status."""

    __slots__ = ("_request_id", "_send", "is_whole", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None
        self.is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (_HEADER, self._request_id.encode())]
        elif not message.get("more_body"):
            self.is_whole = True
        await self._send(message)
