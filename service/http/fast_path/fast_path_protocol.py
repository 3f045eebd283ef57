"""HTTP/1.1 that answers short requests to `FastPathRoute`s where their last byte is read.

Handing a request to an ASGI application, and its response back, takes uvicorn as long as parsing
several requests. Here the endpoint is called directly, and head and body go out in one write. A
request takes the ASGI path instead if it has query parameters, a long or slow body, an unusual
head, or a route that is no `FastPathRoute`.
"""

import asyncio
import re
import time
from asyncio import TimerHandle
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.http.asgi_request import CLIENT, CONTROL
from service.http.fast_path.coroutine_runner import CoroutineRunner
from service.http.fast_path.route_cache import RouteMatch
from service.http.http_protocol import HttpProtocol
from service.http.lifespan_state import HTTP_CONTEXT, HttpContext
from service.http.middleware import HUNG_UP_STATUS, STARTED
from service.http.request_body import WHOLE_BODY, index_headers

_MAX_BODY_BYTES = 2**16  # uvicorn, too, reads no more before the application asks for it
_MAX_REMEMBERED_HEAD_BYTES = 2**12
"""Longer heads are not remembered, since every connection may have one."""
_END_OF_HEAD = b"\r\n\r\n"
_BODY_DELAY_SECONDS = 0.05
"""Many clients send head and body one after the other; a body that takes longer goes to ASGI."""

_PLAIN_PATH = re.compile(rb"/[\w./-]+", re.ASCII)
"""A path without a query and without characters that have to be decoded."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The parsed head of a request to a `FastPathRoute`."""

    match: RouteMatch
    scope: Scope
    """The ASGI scope that all requests with this head share; each gets a copy."""
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class _RememberedRequest:
    """A request that arrived whole and alone in one read: the next one is often like it."""

    head: _Head
    head_bytes: bytes
    length: int

    def has_head_of(self, data: bytes) -> bool:
        """Return whether `data` has the same head and a body of the same length."""
        return len(data) == self.length and data.startswith(self.head_bytes)


class _Cycle:
    """The attributes that uvicorn's protocol reads of the request under way."""

    __slots__ = ("disconnected", "keep_alive", "response_complete", "response_started")
    message_event = asyncio.Event()
    """uvicorn's protocol sets it; nobody waits for it."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_started = False
        self.response_complete = False


class FastPathProtocol(HttpProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context: HttpContext = self.app_state[HTTP_CONTEXT]
        self._routes = context.routes
        self._arriving: _Head | None = None
        """The head of the request whose body is arriving, unless it takes the ASGI path."""
        self._started_at = 0.0
        self._body = bytearray()
        self._answered: tuple[_Head, int] | None = None
        """The request that was answered last in this read, and the length of its body."""
        self._remembered: _RememberedRequest | None = None
        """The request of the last read, if that read held one whole request and nothing else."""
        self._runner: CoroutineRunner | None = None
        self._fallback_timer: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Answer a request like the one before at once; parse any other data."""
        remembered = self._remembered
        if remembered is not None and remembered.has_head_of(data) and self._is_free():
            if self._client.may_begin_request(self.loop):
                self._answer_like(remembered, data[len(remembered.head_bytes) :])
            else:
                self._buffer_unparsed(data)
                self._wait_for_quota()
            return
        was_free = self._is_between_requests and self._is_free()
        self._answered = None
        super().data_received(data)
        self._remembered = self._request_in(data) if was_free else None
        self._answered = None
        self._limit_body_delay()

    def _limit_body_delay(self) -> None:
        """Hand a request whose body arrives slowly to ASGI, where the body has its time limit."""
        if self._arriving is not None and self._fallback_timer is None:
            self._fallback_timer = self.loop.call_later(
                _BODY_DELAY_SECONDS, self._fall_back_to_asgi
            )

    def _parse_buffered(self) -> None:
        """Answer a request that has waited; one like the request before is not parsed."""
        remembered = self._remembered
        if not self._is_between_requests or len(self._unparsed) > _MAX_BODY_BYTES:
            super()._parse_buffered()
            self._limit_body_delay()
            return
        data = bytes(self._unparsed)
        if remembered is not None and remembered.has_head_of(data):
            self._unparsed.clear()
            self._add_buffered_bytes(-len(data))
            self._answer_like(remembered, data[len(remembered.head_bytes) :])
            return
        self._answered = None
        super()._parse_buffered()
        self._remembered = self._request_in(data)
        self._answered = None
        self._limit_body_delay()

    def _answer_like(self, remembered: _RememberedRequest, body: bytes) -> None:
        """Answer a request that differs from a remembered one in its body alone."""
        self._started_at = time.perf_counter()
        self._is_answering = True
        self._deadline.clear()
        self._answer(remembered.head, body)

    def _is_free(self) -> bool:
        """Return whether the next data begins a request that can be answered at once."""
        return (
            self._is_between_requests
            and not self._is_answering
            and not self._unparsed
            and not self._is_backing_off
            and not self.flow.write_paused
            and self._linger_bytes_left is None
        )

    def _request_in(self, data: bytes) -> _RememberedRequest | None:
        """Return what to remember of a read; None unless it held one whole request, unchunked."""
        if self._answered is None:
            return None
        head, body_length = self._answered
        head_bytes = data[: data.find(_END_OF_HEAD) + len(_END_OF_HEAD)]
        is_alone = len(head_bytes) + body_length == len(data)
        if not is_alone or len(head_bytes) > _MAX_REMEMBERED_HEAD_BYTES:
            return None
        return _RememberedRequest(head, head_bytes, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that its client is gone, also of a request that is arriving."""
        self._fall_back_to_asgi()
        super().connection_lost(exc)

    def _cancel_response(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
        super()._cancel_response()

    def shutdown(self) -> None:
        """Answer what is in flight, a request that is arriving included, then close."""
        self._fall_back_to_asgi()
        super().shutdown()

    def _begin_request(self) -> None:
        self._started_at = time.perf_counter()
        self._arriving = self._find_head()
        if self._arriving is None:
            self._begin_with_asgi()
        else:
            self.cycle = _Cycle(self._arriving.keep_alive)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; hand a long one to ASGI."""
        if self._arriving is None:
            super().on_body(body)
            return
        self._unreported_bytes = 0
        self._body += body
        if len(self._body) > _MAX_BODY_BYTES:
            self._fall_back_to_asgi()

    def _end_request(self) -> bool:
        head, body = self._take_arriving()
        if head is None:
            return super()._end_request()
        self._answered = head, len(body)
        self._is_answering = True
        self._answer(head, bytes(body))
        return self._is_answering

    def _refuse_request(self, status: int, scope: Scope | None = None) -> None:
        head, _ = self._take_arriving()
        super()._refuse_request(status, scope if head is None else dict(head.scope))

    def _take_arriving(self) -> tuple[_Head | None, bytearray]:
        """Give up the request that is arriving; return its head and the part of its body."""
        if self._fallback_timer is not None:
            self._fallback_timer.cancel()
            self._fallback_timer = None
        taken = self._arriving, self._body
        self._arriving, self._body = None, bytearray()
        return taken

    def _fall_back_to_asgi(self) -> None:
        """Hand the request that is arriving to the ASGI application, if there is one."""
        head, body = self._take_arriving()
        if head is None:
            return
        self._begin_with_asgi()
        super().on_body(bytes(body))

    def _begin_with_asgi(self) -> None:
        super()._begin_request()

    def _find_head(self) -> _Head | None:
        """Return the head of the request that begins; None where it takes the ASGI path."""
        parser = self.parser
        if parser.get_http_version() != "1.1" or self.expect_100_continue:
            return None
        if not _PLAIN_PATH.fullmatch(self.url):
            return None
        method = parser.get_method().decode()
        match = self._routes.find(method, self.url.decode())
        if match is None:
            return None
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "query_string": b"",
            "headers": self._request_headers,
            CLIENT: self._client,
            CONTROL: self.is_control,
        }
        match.write_to(scope)
        index_headers(scope)
        self._handler.inspect(scope)
        return _Head(match, scope, parser.should_keep_alive())

    def _answer(self, head: _Head, body: bytes) -> None:
        scope = dict(head.scope)
        scope[STARTED] = self._started_at
        scope[WHOLE_BODY] = body
        cycle: Any = _Cycle(head.keep_alive)
        self.cycle = cycle
        responding = self._handler.respond(head.match.route.fast_endpoint, Request(scope))
        finish = partial(self._finish, cycle, scope)
        self._runner = CoroutineRunner(responding, finish, self._fail, self.tasks)
        self._runner.start()

    def _fail(self) -> None:
        """Close the connection: the handler itself has failed, and no response will come."""
        self._runner = None
        self.logger.exception("the response failed")  # the parser may hide the error
        self.transport.close()

    def _finish(self, cycle: _Cycle, scope: Scope, response: Response) -> None:
        self._runner = None
        if cycle.disconnected or self._linger_bytes_left is not None or self.transport.is_closing():
            self._handler.record(scope, HUNG_UP_STATUS)
            return
        cycle.response_complete = True
        self._send(response, keep_alive=cycle.keep_alive and not self.is_last_response())
        self._last_status = response.status_code
        self.on_response_complete()
        self._handler.record(scope, response.status_code)
