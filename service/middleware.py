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
from service import logs
from service.bodies import header
from service.error_responses import domain_error_response, internal_error
from service.errors import NotReadyError, OverloadedError
from service.express import Endpoint, Timetable
from service.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = "dropserve.request_id"
"""Where the scope has it."""

STARTED = "dropserve.started"
"""Where the scope has when its head was whole, seconds of `time.perf_counter`."""
HUNG_UP = 499
"""Status where the client did, before an answer, as nginx has it."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_BITS = 128
_UNMATCHED = "unmatched"
_STOPPING = "The server is stopping; send the request to another."
"""Said where an answer was cancelled: the grace after SIGTERM is over."""
_UNLIMITED = ("/health/", "/v2/health/", "/metrics")
_HEADER = REQUEST_ID_HEADER.lower().encode()

logger = structlog.stdlib.get_logger("service")
_levels = logging.getLogger("service")


class Observed:
    """ASGI middleware; an error nobody foresaw ends here as a 500 with a traceback in the log."""

    def __init__(
        self, app: ASGIApp, express: Timetable, metrics: Metrics, max_concurrent_requests: int
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._limit = max_concurrent_requests
        # Made once: where there is too much to do, to say so must cost little.
        self._refusal = domain_error_response(
            OverloadedError(
                f"The server has {max_concurrent_requests} requests in hand; try again in a second."
            )
        )
        self._in_hand = 0
        metrics.tally.show(metrics.in_hand, lambda: self._in_hand)
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
        if express is not None:
            express.note(scope)
            response = self.refusal(scope)
            if response is None:
                response = await self.respond(express.endpoint, Request(scope, receive))
            try:
                await response(scope, receive, send)
            finally:
                self.record(scope, response.status_code)
            return
        exchange = _Exchange(send, _begin(scope))
        self._in_hand += 1
        try:
            await self._answer(scope, receive, exchange)
        finally:
            self._in_hand -= 1
            self.record(scope, exchange.status or HUNG_UP)

    async def respond(self, endpoint: Endpoint, request: Request) -> Response:
        """Answer a request to one endpoint, whatever becomes of it; `record` that afterwards.

        Ask `refusal` first.
        """
        request_id = _begin(request.scope)
        self._in_hand += 1
        try:
            response = await self._response(endpoint, request)
        finally:
            self._in_hand -= 1
        return _named(response, request_id)

    def refusal(self, scope: Scope) -> Response | None:
        """Refuse a request if too many are in hand; `record` that afterwards."""
        if self._in_hand < self._limit:
            return None
        response = Response.__new__(Response)
        vars(response).update(vars(self._refusal))  # copy() takes several times as long
        return _named(response, _begin(scope))

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

    async def _answer(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        if self._in_hand > self._limit and not scope["path"].startswith(_UNLIMITED):
            await self._refusal(scope, receive, exchange.send)
            return
        try:
            await self._app(scope, receive, exchange.send)
        except asyncio.CancelledError:
            if exchange.status is not None:
                raise
            await domain_error_response(NotReadyError(_STOPPING))(scope, receive, exchange.send)
        except Exception:
            logger.exception("request failed", method=scope["method"], path=scope["path"])
            if exchange.is_whole:  # FastAPI has answered for it already
                return
            if exchange.status is not None:
                raise  # half an answer is out: let the server cut the connection
            await internal_error()(scope, receive, exchange.send)

    def record(self, scope: Scope, status: int) -> None:
        """Count a request, and write its line, once it is answered."""
        seconds = time.perf_counter() - scope[STARTED]
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        method = scope["method"] if route != _UNMATCHED else "any"  # both could be invented
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
    scope.setdefault(STARTED, time.perf_counter())
    scope[REQUEST_ID] = given or request_id  # as it was given, odd or not: canaries hash it
    logs.REQUEST_ID.set(request_id)  # of this request's context
    return request_id


def _named(response: Response, request_id: str) -> Response:
    response.raw_headers = [*response.raw_headers, (_HEADER, request_id.encode())]
    return response


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
