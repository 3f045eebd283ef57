"""Around every request: its id, its log line, its metrics, the limit on how many at once.

Knows no route's meaning.
"""

import asyncio
import logging
import re
import time
from random import getrandbits

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import NotReadyError, OverloadedError, domain_error_response, internal_error
from service.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = "dropserve.request_id"
"""Where the scope has it."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_BITS = 128
_UNMATCHED = "unmatched"
_UNLIMITED = ("/health/", "/v2/health/", "/metrics")
_HEADER = REQUEST_ID_HEADER.lower().encode()

logger = structlog.stdlib.get_logger("service")
_levels = logging.getLogger("service")


class Observed:
    """ASGI middleware; an error nobody foresaw ends here as a 500 with a traceback in the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_concurrent_requests: int) -> None:
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is no HTTP request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _given_id(scope)
        request_id = given if _GOOD_ID.fullmatch(given) else f"{getrandbits(_ID_BITS):032x}"
        scope[REQUEST_ID] = given or request_id  # as it was given, odd or not: canaries hash it
        logs.REQUEST_ID.set(request_id)  # of this request's task
        exchange = _Exchange(send, request_id)
        self._count(+1)
        try:
            await self._answer(scope, receive, exchange)
        finally:
            self._count(-1)
            self._record(scope, exchange)

    async def _answer(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        if self._in_hand > self._limit and not scope["path"].startswith(_UNLIMITED):
            await self._refusal(scope, receive, exchange.send)
            return
        try:
            await self._app(scope, receive, exchange.send)
        except asyncio.CancelledError:  # the grace after SIGTERM is over
            if exchange.status is not None:
                raise
            sentence = "The server is stopping; send the request to another."
            await domain_error_response(NotReadyError(sentence))(scope, receive, exchange.send)
        except Exception:
            logger.exception("request failed", method=scope["method"], path=scope["path"])
            if exchange.is_whole:  # FastAPI has answered for it already
                return
            if exchange.status is not None:
                raise  # half an answer is out: let the server cut the connection
            await internal_error()(scope, receive, exchange.send)

    def _count(self, step: int) -> None:
        self._in_hand += step
        self._metrics.tally.add(self._metrics.in_hand, step)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        method = scope["method"] if route != _UNMATCHED else "any"  # both could be invented
        status = exchange.status or 499  # the client hung up before an answer, as nginx has it
        self._metrics.answered(route, method, status, seconds)
        level = logging.DEBUG if scope["path"].startswith(_UNLIMITED) else logging.INFO
        if _levels.isEnabledFor(level):
            logger.log(
                level,
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 2),
            )


def _given_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _HEADER:
            return str(value, "latin-1")
    return ""


class _Exchange:
    """One request's answer on its way out: adds the id, remembers the status and the start."""

    __slots__ = ("_request_id", "_send", "is_whole", "started", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None
        self.is_whole = False
        self.started = time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (_HEADER, self._request_id.encode())]
        elif not message.get("more_body"):
            self.is_whole = True
        await self._send(message)
