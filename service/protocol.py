"""HTTP/1.1 as uvicorn speaks it, in fewer steps for short requests to express routes.

To hand a request to an application, and its answer back, takes uvicorn as long as to parse several.
Here one to an express route is answered where its last byte was read: without a task, unless it has
to wait, without events, in one write. Whatever is out of the ordinary, longer, or slow to arrive
takes the usual road. Knows no route.
"""

import asyncio
import re
import time
from asyncio import TimerHandle
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.answering import Answering, Responding
from service.bodies import WHOLE_BODY, index_headers
from service.error_responses import http_error
from service.express import Endpoint, Express, Timetable
from service.middleware import HUNG_UP, STARTED

_MOST_BYTES = 2**16  # of a body; uvicorn, too, reads no more before the application asks
_MOST_HEAD_BYTES = 2**16  # of the target, headers and trailers
_LONG_HEAD_BYTES = 2**12
"""Longer ones are not remembered: every connection might have one."""
_MOST_ANSWERS = 8
_END_OF_HEAD = b"\r\n\r\n"
_PATIENCE_SECONDS = 0.05
"""Many clients send the head and the body one after the other; more than that is not waited for."""

_PLAIN_PATH = re.compile(rb"/[\w./-]+", re.ASCII)
"""No query, and nothing that would have to be decoded."""


class HeadTooLongError(Exception):
    """Tells the parser to stop."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What the parser has made of the head of a request to an express route."""

    express: Express
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


class Entrance(Protocol):
    """What is used of `service.middleware.Observed`."""

    express: Timetable

    def refusal(self, scope: Scope) -> Response | None:
        """Answer where there is too much to do already."""
        ...

    def respond(self, endpoint: Endpoint, request: Request) -> Responding:
        """Answer, whatever becomes of the request."""
        ...

    def record(self, scope: Scope, status: int) -> None:
        """Note that the answer is out."""
        ...


class _Cycle:
    """What uvicorn asks of a request and its answer, from the head's end to the last byte."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")
    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False


class ExpressProtocol(HttpToolsProtocol):
    """uvicorn's protocol, for an application that has an entrance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entrance: Entrance = self.app.entrance
        self._arriving: _Head | None = None
        """Of the request whose body is arriving, unless it takes the usual road."""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._unread = 0
        """Bytes of which the parser has made nothing yet."""
        self._began = 0.0
        self._body = bytearray()
        self._default_lines: tuple[object, bytes] = (None, b"")
        """Of uvicorn's list, which it makes anew every second, and what it comes to."""
        self._is_between = True
        """Two requests, at the end of a read."""
        self._last: tuple[_Head, int] | None = None
        """The request that was answered last in this read, and the length of its body."""
        self._pattern: _Pattern | None = None
        """The last read, if it was a whole request."""
        self._answers = 0
        """Of one read: one that holds many requests must not hold up everybody else's."""
        self._impatience: TimerHandle | None = None
        self._rests_since: float | None = None
        self._end_of_rest: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what has come, and wait a little for what has not."""
        self._answers = 0
        self._rests_since = None
        pattern = self._pattern
        if pattern is not None and pattern.fits(data) and self._is_free():
            self._began = time.perf_counter()
            self._answer(pattern.head, data[len(pattern.begins) :])
            return
        began_between = self._is_between
        self._unread += len(data)
        super().data_received(data)
        self._pattern = self._pattern_of(data) if began_between else None
        self._last = None
        if self._is_between:
            self._fields = []  # they may be long, and the connection rest for long
        if self._unread > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("")  # a header without an end
        if self._arriving is not None and self._impatience is None:
            self._impatience = self.loop.call_later(_PATIENCE_SECONDS, self._take_usual_road)

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
        self._take_usual_road()
        if self._end_of_rest is not None:
            self._end_of_rest.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let what is in hand end, a request that is arriving included."""
        self._take_usual_road()
        super().shutdown()

    def on_response_complete(self) -> None:
        """Turn to the next request, or rest until there is one, but not for ever."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._rests_since = self.loop.time()
        if self._end_of_rest is None:  # to set a timer for every answer takes longer
            self._end_rest_in(self.timeout_keep_alive)

    def _end_rest_in(self, seconds: float) -> None:
        self._end_of_rest = self.loop.call_later(seconds, self._end_rest)

    def _end_rest(self) -> None:
        self._end_of_rest = None
        if self._rests_since is None:
            return
        left = self._rests_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._end_rest_in(left)
        else:
            self.timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        """Expect a request."""
        self._is_between = False
        self._rests_since = None
        self._head_bytes = self._unread = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Take a piece of its target."""
        self._unread = 0
        self._head_bytes += len(url)
        if self._head_bytes > _MOST_HEAD_BYTES:
            raise HeadTooLongError
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer; as uvicorn does, but for the count."""
        self._unread = 0
        self._head_bytes += len(name) + len(value) + 4  # with the colon and the line's end
        if self._head_bytes > _MOST_HEAD_BYTES:
            raise HeadTooLongError
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, in the shape that every error has."""
        too_long = max(self._head_bytes, self._unread) > _MOST_HEAD_BYTES
        self._send(http_error(431 if too_long else 400), keep_alive=False)

    def on_headers_complete(self) -> None:
        """Begin it."""
        self._began = time.perf_counter()
        self._fields, self.headers = self.headers, []  # what is still to come are trailers
        self._arriving = self._found()
        if self._arriving is None:
            self._begin_as_usual()

    def on_body(self, body: bytes) -> None:
        """Take a piece of its body."""
        self._unread = 0
        if self._arriving is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > _MOST_BYTES:
            self._take_usual_road()

    def on_message_complete(self) -> None:
        """End it."""
        self._is_between = True
        head, body = self._depart()
        if head is None:
            super().on_message_complete()
        else:
            self._last = head, len(body)
            self._answer(head, bytes(body))

    def _depart(self) -> tuple[_Head | None, bytearray]:
        """Let go of the request that is arriving."""
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
        departed = self._arriving, self._body
        self._arriving, self._body = None, bytearray()
        return departed

    def _take_usual_road(self) -> None:
        head, body = self._depart()
        if head is None:
            return
        self._begin_as_usual()
        super().on_body(bytes(body))

    def _begin_as_usual(self) -> None:
        url, expected = self.url, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expected
        self.headers += self._fields  # the scope has this list
        super().on_headers_complete()

    def _is_free(self) -> bool:
        """Tell whether there is neither an answer nor a read to be waited for."""
        cycle = self.cycle
        has_answered = cycle is None or cycle.response_complete
        return has_answered and not self.flow.write_paused and self._answers < _MOST_ANSWERS

    def _found(self) -> _Head | None:
        parser = self.parser
        if parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        if self.expect_100_continue or not self._is_free():
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
        }
        express.note(scope)
        index_headers(scope)
        return _Head(express, scope, parser.should_keep_alive())

    def _answer(self, head: _Head, body: bytes) -> None:
        scope = dict(head.scope)
        scope[STARTED] = self._began
        scope[WHOLE_BODY] = body
        self._answers += 1
        cycle: Any = _Cycle(head.keep_alive)
        self.cycle = cycle
        refusal = self._entrance.refusal(scope)
        if refusal is not None:
            self._finish(cycle, scope, refusal)
            return
        responding = self._entrance.respond(head.express.endpoint, Request(scope))
        answering = Answering(responding, partial(self._finish, cycle, scope), self.transport)
        if not answering.go_on():
            self.tasks.add(answering)  # type: ignore[arg-type]
            answering.when_done = self.tasks.discard

    def _finish(self, cycle: _Cycle, scope: Scope, response: Response) -> None:
        if cycle.disconnected or self.transport.is_closing():
            self._entrance.record(scope, HUNG_UP)
            return
        self._send(response, keep_alive=cycle.keep_alive)
        cycle.response_complete = True
        self.on_response_complete()
        self._entrance.record(scope, response.status_code)

    def _send(self, response: Response, *, keep_alive: bool) -> None:
        defaults = self.server_state.default_headers
        if self._default_lines[0] is not defaults:
            self._default_lines = defaults, _lines(defaults)
        parts = (
            STATUS_LINE[response.status_code],
            self._default_lines[1],
            _lines(response.raw_headers),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            bytes(response.body),
        )
        self.transport.write(b"".join(parts))
        if not keep_alive:
            self.transport.close()


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
