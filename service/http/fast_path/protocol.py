"""Short requests to express routes, answered in fewer steps than ASGI takes.

To hand a request to an application, and its answer back, takes uvicorn as long as to parse several.
Here one to an express route is answered where its last byte was read: without a task, unless it has
to wait, without events, in one write. Whatever is out of the ordinary, longer, or slow to arrive
takes the usual road. Knows no route.
"""

import asyncio
import re
import time
from asyncio import TimerHandle
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.http.body import WHOLE_BODY, index_headers
from service.http.fast_path.coroutine_runner import CoroutineRunner, Responding
from service.http.fast_path.route_cache import Endpoint, RouteCache, RouteMatch
from service.http.middleware import HUNG_UP_STATUS, STARTED
from service.http.protocol import CLIENT, CONTROL, HttpProtocol

_MOST_BYTES = 2**16  # of a body; uvicorn, too, reads no more before the application asks
_LONG_HEAD_BYTES = 2**12
"""Longer ones are not remembered: every connection might have one."""
_END_OF_HEAD = b"\r\n\r\n"
_PATIENCE_SECONDS = 0.05
"""Many clients send the head and the body one after the other; more than that is not waited for."""

_PLAIN_PATH = re.compile(rb"/[\w./-]+", re.ASCII)
"""No query, and nothing that would have to be decoded."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What the parser has made of the head of a request to an express route."""

    express: RouteMatch
    scope: Scope
    """As it is for every request with this head: copy it."""
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A request that came in one read, whole and alone; the next one may be like it."""

    head: _Head
    begins: bytes
    length: int

    def fits(self, data: bytes) -> bool:
        """Tell whether it has the same head, and a body as long."""
        return len(data) == self.length and data.startswith(self.begins)


class RequestHandler(Protocol):
    """What is used of `service.http.middleware.RequestMiddleware`."""

    express: RouteCache

    def respond(self, endpoint: Endpoint, request: Request) -> Responding:
        """Answer, whatever becomes of the request; there may be too much to do already."""
        ...

    def record(self, scope: Scope, status: int) -> None:
        """Note that the answer is out."""
        ...


class _Cycle:
    """What uvicorn asks of a request and its answer, from the head's end to the last byte."""

    __slots__ = ("disconnected", "keep_alive", "response_complete", "response_started")
    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_started = False
        self.response_complete = False


class FastPathProtocol(HttpProtocol):
    """The HTTP protocol, for an application that has an entrance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entrance: RequestHandler = self.app.entrance
        self._arriving: _Head | None = None
        """Of the request whose body is arriving, unless it takes the usual road."""
        self._began = 0.0
        self._body = bytearray()
        self._last: tuple[_Head, int] | None = None
        """The request that was answered last in this read, and the length of its body."""
        self._pattern: _Pattern | None = None
        """The last read, if it was a whole request."""
        self._answering: CoroutineRunner | None = None
        self._impatience: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what has come, and wait a little for what has not."""
        pattern = self._pattern
        if pattern is not None and pattern.fits(data) and self._is_free():
            if self._client.takes_turn(self.loop):
                self._answer_like(pattern, data[len(pattern.begins) :])
            else:
                self._keep(data)
                self._wait_for_turn()
            return
        began_between = self._is_between and self._is_free()
        self._last = None
        super().data_received(data)
        self._pattern = self._pattern_of(data) if began_between else None
        self._last = None
        if self._is_between and not self._is_answering:
            self._fields = []  # they may be long, and the connection rest for long
        self._limit_arrival()

    def _limit_arrival(self) -> None:
        """Leave a request whose body arrives slowly to the application, which limits its time."""
        if self._arriving is not None and self._impatience is None:
            self._impatience = self.loop.call_later(_PATIENCE_SECONDS, self._fall_back_to_asgi)

    def _parse_kept(self) -> None:
        """Answer a request that has waited, at once if it is like the one before."""
        pattern = self._pattern
        if not self._is_between or len(self._received) > _MOST_BYTES:
            super()._parse_kept()
            self._limit_arrival()
            return
        data = bytes(self._received)
        if pattern is not None and pattern.fits(data):
            self._received.clear()
            self._buffer(-len(data))
            self._answer_like(pattern, data[len(pattern.begins) :])
            return
        self._last = None
        super()._parse_kept()
        self._pattern = self._pattern_of(data)
        self._last = None
        self._limit_arrival()

    def _answer_like(self, pattern: _Pattern, body: bytes) -> None:
        self._began = time.perf_counter()
        self._is_answering = True
        self._deadline = None
        self._answer(pattern.head, body)

    def _is_free(self) -> bool:
        """Tell whether what comes now begins a request that can be answered at once."""
        return (
            self._is_between
            and not self._is_answering
            and not self._received
            and not self._is_resting
            and not self.flow.write_paused
            and self._lingers_for is None
        )

    def _pattern_of(self, data: bytes) -> _Pattern | None:
        """Remember a read that was one whole request, its body not in chunks."""
        if self._last is None:
            return None
        head, body_length = self._last
        begins = data[: data.find(_END_OF_HEAD) + len(_END_OF_HEAD)]
        if len(begins) + body_length != len(data) or len(begins) > _LONG_HEAD_BYTES:
            return None
        return _Pattern(head, begins, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let who is answered know, a request that is arriving included."""
        self._fall_back_to_asgi()
        super().connection_lost(exc)

    def _cancel_answer(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        super()._cancel_answer()

    def shutdown(self) -> None:
        """Let what is in hand end, a request that is arriving included."""
        self._fall_back_to_asgi()
        super().shutdown()

    def _begin_request(self) -> None:
        self._began = time.perf_counter()
        self._arriving = self._found()
        if self._arriving is None:
            self._begin_with_asgi()
        else:
            self.cycle = _Cycle(self._arriving.keep_alive)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a piece of its body."""
        if self._arriving is None:
            super().on_body(body)
            return
        self._unread = 0
        self._body += body
        if len(self._body) > _MOST_BYTES:
            self._fall_back_to_asgi()

    def _end_request(self) -> bool:
        head, body = self._depart()
        if head is None:
            return super()._end_request()
        self._last = head, len(body)
        self._is_answering = True
        self._answer(head, bytes(body))
        return self._is_answering

    def _refuse_request(self, status: int) -> None:
        self._depart()
        super()._refuse_request(status)

    def _depart(self) -> tuple[_Head | None, bytearray]:
        """Let go of the request that is arriving."""
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
        departed = self._arriving, self._body
        self._arriving, self._body = None, bytearray()
        return departed

    def _fall_back_to_asgi(self) -> None:
        head, body = self._depart()
        if head is None:
            return
        self._begin_with_asgi()
        super().on_body(bytes(body))

    def _begin_with_asgi(self) -> None:
        super()._begin_request()

    def _found(self) -> _Head | None:
        parser = self.parser
        if parser.get_http_version() != "1.1" or self.expect_100_continue:
            return None
        if not _PLAIN_PATH.fullmatch(self.url):
            return None
        method = parser.get_method().decode()
        express = self._entrance.express.find(method, self.url.decode())
        if express is None:
            return None
        scope: Scope = {
            "type": "http",
            "method": method,
            "query_string": b"",
            "headers": self._fields,
            CLIENT: self._client,
            CONTROL: self.is_control,
        }
        express.note(scope)
        index_headers(scope)
        return _Head(express, scope, parser.should_keep_alive())

    def _answer(self, head: _Head, body: bytes) -> None:
        scope = dict(head.scope)
        scope[STARTED] = self._began
        scope[WHOLE_BODY] = body
        cycle: Any = _Cycle(head.keep_alive)
        self.cycle = cycle
        responding = self._entrance.respond(head.express.endpoint, Request(scope))
        answering = CoroutineRunner(responding, partial(self._finish, cycle, scope), self.transport)
        if not answering.resume():
            self._answering = answering
            self.tasks.add(answering)  # type: ignore[arg-type]
            answering.when_done = self.tasks.discard

    def _finish(self, cycle: _Cycle, scope: Scope, response: Response) -> None:
        self._answering = None
        if cycle.disconnected or self._lingers_for is not None or self.transport.is_closing():
            self._entrance.record(scope, HUNG_UP_STATUS)
            return
        cycle.response_complete = True
        self._send(response, keep_alive=cycle.keep_alive and not self.is_last_answer())
        self._last_status = response.status_code
        self.on_response_complete()
        self._entrance.record(scope, response.status_code)
