"""HTTP/1.1 on one connection, for clients that may be hostile. Knows no route.

This is uvicorn's protocol with the limits that it lacks. It parses one request at a time: bytes
after the request stay unparsed, and the socket unread, until the response is sent. Heads, bodies,
responses and idle connections are limited in bytes and in time, and each client is limited to its
share of the server. `Upgrade` is ignored, so that a body is never taken for another protocol
(RFC 9112, 6.3, and RFC 9110, 7.8).
"""

import asyncio
import random
from asyncio import TimerHandle
from functools import cache
from typing import Any
from urllib.parse import unquote

import httptools
from httptools import HttpParserError, HttpParserUpgrade
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.asgi_request import CLIENT, CONTROL, HUNG_UP, REFUSED, TARGET_HOST, AsgiCycle
from service.http.client_quotas import Client, Connection
from service.http.connection_deadline import ConnectionDeadline
from service.http.error_responses import http_error
from service.http.lifespan_state import HTTP_CONTEXT, HttpContext
from service.http.request_boundaries import RequestPieces
from service.http.request_framing import (
    RefusedHeadError,
    body_length,
    header_lines,
    without_upgrade,
)

MAX_HEAD_BYTES = 2**16
"""The most bytes of a request's target, headers and trailers together."""

_HEALTH_CHECKS = (b"/health/", b"/v2/health/")
"""How the paths of health checks begin: they may exceed the quota, since they decide if the server
is live."""
_MAX_CHUNKED_BYTES, _MAX_CHUNKED_PIECES = 2**16, 2_000
"""The most of a chunked body that is parsed in one iteration of the event loop.

The parser calls back for each chunk, so that many small chunks would delay other connections.
"""
_MAX_UNREAD_BODY_BYTES = 2**20
"""Body bytes that the application has not received yet; with more, reading is paused."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2**24
"""How long, and how much, is still read and discarded before a connection is closed.

A socket that is closed with unread data is reset, and the client may then lose the response.
"""
_LAST_REQUEST_SECONDS = 1.0
"""How long an idle connection stays open at the shutdown: a last request may be on its way."""
_HALF_CLOSED_SECONDS = 2.0
"""How long a response may take once the client has shut down its sending side.

Most such clients are gone, and TCP does not distinguish the two.
"""
_UNREAD = "-"
"""Method and path in the log line of a request whose head is refused."""
_TOO_MANY_REQUESTS = 429
_BACK_OFF_STATUSES = (_TOO_MANY_REQUESTS, 503)
_BACK_OFF_SECONDS = (0.5, 1.0)
"""Shortest and longest time that a connection is not read after one of these statuses.

It delays clients that retry at once; the time is random, so that they do not retry all together.
"""
_UNKNOWN_VERSION = "Invalid HTTP version"
"""The parser's reason where it refuses a version of HTTP, as in `GET / HTTP/3.0`."""


def _refusal_status(error: HttpParserError) -> int:
    """Return the HTTP status of the response to a request that the parser rejects."""
    if isinstance(error.__context__, RefusedHeadError):
        return error.__context__.status
    return 505 if str(error) == _UNKNOWN_VERSION else 400


@cache
def _urgent_starts(root_path: str) -> tuple[bytes, ...]:
    """Return how the requests of health checks begin, with the root path and without it."""
    return tuple(
        b"GET %b%b" % (prefix, path)
        for prefix in {b"", root_path.encode()}
        for path in _HEALTH_CHECKS
    )


class HttpProtocol(HttpToolsProtocol):
    """One connection of an application whose lifespan state has an `HttpContext`."""

    is_control = False
    """Whether the control listener accepted the connection."""
    _is_proxy = False
    """Whether the connection is a trusted proxy's, so that it has requests of many clients."""
    _bytes_behind: int | None = None
    """Bytes behind the piece that is being parsed; None while nothing is."""
    turn_cost = 1
    """How many requests of the client's quota a request that has waited counts as."""
    _undecrypted_bytes = 0
    """Those of `_buffered_bytes` that TLS has not decrypted yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context: HttpContext = self.app_state[HTTP_CONTEXT]
        self._clients, self._proxies, self._drain = context.clients, context.proxies, context.drain
        self._handler = context.handler
        self._urgent_starts = _urgent_starts(context.proxies.root_path)
        self._client: Client = self._clients.trusted
        self._head_timeout_seconds = context.head_timeout_seconds
        self._write_timeout_seconds = context.write_timeout_seconds
        self._unparsed = bytearray()
        """Received data that is not parsed yet, such as requests behind the one in flight."""
        self._buffered_bytes = 0
        """Bytes of this connection that count against the client's share."""
        self._unsent_bytes = 0
        """Those of `_buffered_bytes` that were waiting to be sent when writing was paused."""
        self._pieces = RequestPieces()
        self._request_headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._unreported_bytes = 0
        """Bytes that the parser was fed since it last reported a part of the request.

        The parser reports a header once it has ended; this limits a header without an end.
        """
        self._is_between_requests = True
        """Whether the last request is complete and the parser has seen nothing of the next."""
        self._needs_head_deadline = False
        self._is_in_body = False
        """Whether the head is complete and the body, trailers included, is not."""
        self._is_answering = False
        """Whether a request is complete and its response is not."""
        self._is_upgrade = False
        """Whether the head asks for another protocol and has to be parsed without that."""
        self._is_shutting_down = self._is_half_closed = False
        self._is_backing_off = False
        self._linger_bytes_left: int | None = None
        """Bytes that may still be discarded before the connection is aborted.

        None unless the connection lingers: it has sent its last response, and discards what comes.
        """
        self._has_answered = False
        """Whether a response was completed during the current call of `_parse`."""
        self._is_parse_scheduled = False
        self._last_status = 0
        self._response_task: asyncio.Task[None] | None = None
        self._deadline = ConnectionDeadline(self.loop, self._on_deadline)
        """When the present state of the connection ends."""
        self._write_timer: TimerHandle | None = None
        self._default_header_lines: tuple[object, bytes] = (None, b"")
        """uvicorn's list of default headers, which it replaces every second, and its lines."""

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; refuse it with 503 if there are too many."""
        super().connection_made(transport)
        host = None if self.is_control or self.client is None else self.client[0]
        self._is_proxy = self._proxies.trusts(host)
        client = self._clients.connect(host, self)
        if client is None:
            self._refuse(503)
            return
        self._client = client
        self._is_shutting_down = bool(getattr(self.server_state, "is_shutting_down", False))
        self._deadline.set(
            _LAST_REQUEST_SECONDS if self._is_shutting_down else self._head_timeout_seconds
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's share and timers, and cancel the response in flight."""
        self._clients.disconnect(self._client, self)
        self._add_buffered_bytes(-self._buffered_bytes)
        self._unparsed.clear()
        self._deadline.end()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self.scope is not None:
            self.scope[HUNG_UP] = True  # type: ignore[literal-required]
        super().connection_lost(exc)
        if self._is_answering:
            self._cancel_response()

    def _cancel_response(self) -> None:
        """Cancel the task whose response nobody will read.

        A task that still waits for the body is not cancelled: it receives `http.disconnect`.
        """
        if self._response_task is not None:
            self._response_task.cancel()

    def evict_if_idle(self) -> bool:
        """Abort the connection unless a request is in flight on it; return whether it was aborted.

        A connection on which no more than an incomplete head has arrived counts as idle.
        """
        if self._is_answering or self._is_in_body or self._unparsed:
            return False
        self._clients.disconnect(self._client, self)
        self.transport.abort()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for a while if the client still awaits a response."""
        if self._linger_bytes_left is not None or not (
            self._is_answering or self._is_parse_scheduled
        ):
            self.limit_closing()
            return False
        self._is_half_closed = True
        if not self._unparsed:  # several requests would each need a timer
            self.loop.call_later(_HALF_CLOSED_SECONDS, self._end_half_closed)
        return True

    def limit_closing(self) -> None:
        """Limit how long a connection that closes waits for its client to read what was sent."""
        self._deadline.set(self._write_timeout_seconds)

    def _end_half_closed(self) -> None:
        if self._is_answering and not self._is_closed():
            self.transport.abort()

    def shutdown(self) -> None:
        """Answer the request in flight, or one more that comes soon, and then close."""
        self._is_shutting_down = True
        if self._is_backing_off:
            self._end_back_off()  # an unread request is answered, too
        if not self._is_answering and not self._is_in_body:
            self._deadline.set(_LAST_REQUEST_SECONDS)

    def is_last_response(self) -> bool:
        """Return whether the connection is closed after this response, also if it is keep-alive.

        While the service drains, it is once all requests that have arrived are answered; the
        control listener is exempt.
        """
        if self._is_shutting_down:
            return True
        is_wanted = self._is_half_closed or (self._drain.is_draining and not self.is_control)
        return is_wanted and not self._is_followed()

    def _is_followed(self) -> bool:
        """Return whether more has arrived behind the current request."""
        behind = self._bytes_behind
        return bool(self._unparsed) if behind is None else behind > 0

    # --- time ---

    def _on_deadline(self) -> None:
        """End a connection that lingers, is idle or sends its head for too long."""
        is_in_head = not self._is_between_requests and not self._is_in_body
        if self._linger_bytes_left is not None or self.transport.is_closing() or self._unsent_bytes:
            self.transport.abort()
        elif is_in_head and not self._is_shutting_down:
            self._refuse(408)
        else:
            self.close()

    def pause_writing(self) -> None:
        """Limit the time and the unsent bytes of a client that does not read its response."""
        super().pause_writing()
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if not self._add_buffered_bytes(self._unsent_bytes):
            self.transport.abort()
            return
        self._write_timer = self.loop.call_later(
            self._write_timeout_seconds, self._on_write_timeout
        )

    def resume_writing(self) -> None:
        """Release the unsent bytes of a client that reads again, and parse the buffered data."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._add_buffered_bytes(-self._unsent_bytes)
        self._unsent_bytes = 0
        super().resume_writing()
        if self._unparsed:
            self._schedule_parse()

    def _on_write_timeout(self) -> None:
        self.transport.abort()

    def _add_buffered_bytes(self, size: int) -> bool:
        """Count bytes against the client's share; return whether they are within the limits.

        size: negative for bytes that are no longer buffered.
        """
        self._buffered_bytes += size
        return self._clients.add_buffered_bytes(self._client, size)

    def _release_request_bytes(self) -> None:
        """Release the bytes of a completed request from the client's share."""
        still_buffered = self._unsent_bytes + self._undecrypted_bytes + len(self._unparsed)
        if self._buffered_bytes != still_buffered:
            self._add_buffered_bytes(still_buffered - self._buffered_bytes)

    def may_begin_handshake(self, connection: Connection) -> bool:
        """Return whether TLS may begin its handshake, which counts as several requests.

        If not, `connection.begin_waiting_request` is called when it may.
        """
        if self._client.may_begin_request(self.loop, cost=connection.turn_cost):
            return True
        self._client.waiting_connections.append(connection)
        return False

    def keep_undecrypted(self, size: int) -> bool:
        """Count the bytes that TLS keeps from now on; return whether they are within the limits."""
        added = size - self._undecrypted_bytes
        self._undecrypted_bytes = size
        return self._add_buffered_bytes(added)

    # --- receiving and parsing ---

    def data_received(self, data: bytes) -> None:
        """Parse data up to the end of one request, or buffer it if no request may begin."""
        if self._linger_bytes_left is not None:
            self._discard(len(data))
        elif self._is_answering or self._unparsed or self._is_backing_off or self.flow.write_paused:
            self._buffer_unparsed(data)
        elif self._is_between_requests and not self._client.may_begin_request(
            self.loop, is_urgent=data.startswith(self._urgent_starts)
        ):
            self._buffer_unparsed(data)
            self._wait_for_quota()
        else:
            end = self._parse(data)
            if end < len(data) and not self._is_closed():
                self._buffer_unparsed(data[end:])
                self._schedule_parse()

    def _buffer_unparsed(self, data: bytes) -> None:
        """Buffer data without parsing it, and pause reading."""
        self._unparsed += data
        if self._add_buffered_bytes(len(data)):
            self.flow.pause_reading()
        else:
            self.transport.abort()

    def _discard(self, size: int) -> None:
        """Count bytes that a lingering connection discards; abort it after too many."""
        assert self._linger_bytes_left is not None
        self._linger_bytes_left -= size
        if self._linger_bytes_left < 0:
            self.transport.abort()

    def _schedule_parse(self) -> None:
        """Parse the buffered data in the next iteration of the event loop."""
        if not self._is_parse_scheduled:
            self._is_parse_scheduled = True
            self.loop.call_soon(self._run_scheduled_parse)

    def _wait_for_quota(self) -> None:
        """Parse the buffered data once the client's quota permits a request to begin."""
        if not self._is_parse_scheduled:
            self._is_parse_scheduled = True
            self._client.waiting_connections.append(self)

    def _run_scheduled_parse(self) -> None:
        self._is_parse_scheduled = False
        if not self._can_parse():
            return
        if self._is_between_requests and not self._client.may_begin_request(self.loop):
            self._wait_for_quota()
        else:
            self._parse_buffered()

    def begin_waiting_request(self) -> None:
        """Begin the request that has waited for the quota; `Client` calls it."""
        self._is_parse_scheduled = False
        if self._can_parse():
            self._parse_buffered()

    def _can_parse(self) -> bool:
        """Return whether there is buffered data and it may be parsed now."""
        return not (
            self._is_answering
            or self._is_backing_off
            or self._is_closed()
            or self.flow.write_paused
            or not self._unparsed
        )

    def _parse_buffered(self) -> None:
        """Parse the buffered data up to the end of one request, and read on if it was all."""
        end = self._parse(self._unparsed)
        del self._unparsed[:end]  # a bytearray seldom copies the rest
        if self._is_closed():
            return
        self._add_buffered_bytes(-end)
        if self._unparsed:
            self._schedule_parse()
        elif not self._is_answering:
            self.flow.resume_reading()

    def _parse(self, data: bytes | bytearray) -> int:
        """Parse data up to the end of one request; return the number of bytes parsed.

        A chunked body may take several calls, one in an iteration of the event loop.
        """
        pieces = self._pieces
        start = chunked_bytes = chunked_pieces = 0
        self._has_answered = False
        while start < len(data) and not (
            self._is_answering or self._has_answered or self._is_closed()
        ):
            if chunked_bytes >= _MAX_CHUNKED_BYTES or chunked_pieces >= _MAX_CHUNKED_PIECES:
                break
            end = pieces.end_of_piece(data, start, is_in_body=self._is_in_body)
            if self._is_in_body and pieces.body_bytes_left is None:
                chunked_bytes += end - start
                chunked_pieces += 1
            self._unreported_bytes += end - start
            if not (
                self._is_in_body or pieces.has_request_line
            ) and not pieces.is_request_line_strict(data[start:end]):
                self._refuse_request(400)
                return start
            # bytes() of bytes copies nothing; a bytearray may change while the parser reads it.
            self._bytes_behind = len(data) - end
            self._feed_parser(bytes(data if end - start == len(data) else data[start:end]))
            self._bytes_behind = None
            start = end
        if start == len(data) and not self._is_closed():
            self._limit_head()
        return start

    def _limit_head(self) -> None:
        """Limit the size and the time of a head that is incomplete."""
        if self._is_between_requests or self._is_in_body or self._is_answering:
            return
        if self._unreported_bytes > MAX_HEAD_BYTES:
            self._refuse(431)  # a header without an end
        elif self._needs_head_deadline:
            self._needs_head_deadline = False
            self._deadline.set(self._head_timeout_seconds)

    def _feed_parser(self, piece: bytes) -> None:
        """Feed the parser, which calls the `on_` methods below; refuse what it rejects."""
        try:
            self.parser.feed_data(piece)
        except HttpParserUpgrade:
            if self._is_upgrade:
                self._parse_without_upgrade()
            else:  # such as HTTP/2 with prior knowledge
                self._refuse(505)
        except HttpParserError as error:
            self._refuse_request(_refusal_status(error))

    def _parse_without_upgrade(self) -> None:
        """Parse the head again without the headers that ask for another protocol."""
        self._is_upgrade = False
        parser = self.parser
        version = parser.get_http_version()
        head = without_upgrade(parser.get_method(), self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self._feed_parser(head)

    def _refuse_request(self, status: int, scope: Scope | None = None) -> None:
        """Send an error response; abort the connection if a response has begun already.

        scope: of the request, if its head is complete and no task answers it.
        """
        if self._is_closed():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
            if isinstance(self.cycle, AsgiCycle):
                scope = self.cycle.scope  # type: ignore[assignment]
                self.cycle.scope[REFUSED] = True  # type: ignore[literal-required]
        self._refuse(status, scope)

    def _refuse(self, status: int, scope: Scope | None = None) -> None:
        """Answer with an error in place of the application, and close; see `refusal`."""
        self.transport.write(self.refusal(http_error(status), scope))
        self.close()

    def refusal(self, response: Response, scope: Scope | None = None) -> bytes:
        """Return the bytes of a last response that the application has no part in, recorded.

        scope: of the request; None: its head is refused, or has not come.
        """
        unread: Scope = {
            "type": "http",
            "client": self.client,
            "scheme": self.scheme,
            "method": _UNREAD,
            "path": _UNREAD,
            "query_string": b"",
            "headers": [],
            CLIENT: self._client,
            CONTROL: self.is_control,
        }
        return self._serialize(self._handler.refuse(scope or unread, response), keep_alive=False)

    # --- callbacks of the parser ---

    def on_message_begin(self) -> None:
        """Begin the head of a request."""
        self._is_between_requests = False
        self._needs_head_deadline = True
        self._head_bytes = self._unreported_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Append a piece of the request's target."""
        self._count_head_bytes(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Append a header or a trailer, as uvicorn does, and count its bytes."""
        self._count_head_bytes(len(name) + len(value) + 4)  # the colon, a space and the line's end
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            # A client of HTTP/1.0 would take the interim response for the final one.
            self.expect_100_continue = self.parser.get_http_version() != "1.0"
        self.headers.append((name, value))

    def _count_head_bytes(self, size: int) -> None:
        """Count bytes of the head; raise RefusedHeadError (431) if there are too many."""
        self._unreported_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise RefusedHeadError(431)

    def on_headers_complete(self) -> None:
        """Begin the request if its head is unambiguous about where the request ends."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._is_upgrade = True
            return
        parser = self.parser
        length = body_length(parser.get_method(), parser.get_http_version(), self.headers)
        self._pieces.begin_body(length)
        self._is_in_body = length != 0
        self._deadline.clear()
        self._request_headers, self.headers = self.headers, []  # later headers are trailers
        self._begin_request()

    def _begin_request(self) -> None:
        """Start a task in which the ASGI application answers the request."""
        url = httptools.parse_url(self.url)
        if url.path is None:
            raise RefusedHeadError(400)
        path = url.path.decode("ascii")
        version = self.parser.get_http_version()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": self.parser.get_method().decode("ascii"),
            "root_path": self.root_path,
            "path": self._proxies.route_path(unquote(path) if "%" in path else path),
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._request_headers,
            "state": self.app_state.copy(),
            CLIENT: self._client,
            CONTROL: self.is_control,
        }
        if url.host is not None:
            host = url.host.decode("latin-1")
            scope[TARGET_HOST] = f"[{host}]" if ":" in host else host
        self.scope = scope  # type: ignore[assignment]
        self.cycle = AsgiCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._response_task = self.loop.create_task(self.cycle.run_asgi(self.app))
        self._response_task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._response_task)

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body; refuse the request if the client's share is exceeded."""
        self._unreported_bytes = 0
        if self.cycle.response_complete:
            return
        if not self._add_buffered_bytes(len(body)):
            self._refuse_request(503)
            return
        self.cycle.body += body
        if len(self.cycle.body) > _MAX_UNREAD_BODY_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the request; the next byte belongs to another."""
        if self._is_upgrade:
            return
        self._is_between_requests = True
        self._is_in_body = False
        self._pieces.end_request()
        self._is_answering = self._end_request()

    def _end_request(self) -> bool:
        """Signal that the body is complete; return whether a response is awaited."""
        super().on_message_complete()
        return not self.cycle.response_complete

    # --- sending responses ---

    def on_response_complete(self) -> None:
        """End the request, and expect the next one, after a pause if the client shall slow down."""
        self.server_state.total_requests += 1
        self._response_task = None
        self._is_answering = False
        self._has_answered = True
        self._request_headers = []  # headers may be long, and an idle connection may live long
        if self._buffered_bytes:
            self._release_request_bytes()
        if self._linger_bytes_left is not None or self.transport.is_closing():
            return
        if isinstance(self.cycle, AsgiCycle):
            self._last_status = self.cycle.status
        if self._last_status in _BACK_OFF_STATUSES:
            self._back_off()
        if not self._is_backing_off:
            self._expect_next_request()

    def _expect_next_request(self) -> None:
        """Parse the next request, or read on until one comes or the keep-alive timeout passes."""
        if self._unparsed:
            self._schedule_parse()
        elif self.flow.read_paused:
            self.flow.resume_reading()
        self._deadline.set(self.timeout_keep_alive)

    def _back_off(self) -> None:
        """Pause reading for a while: another attempt would be refused, too.

        The control listener is exempt, and a proxy's connection, where one client's refusal would
        delay others.
        """
        if self.is_control or (self._is_proxy and self._last_status == _TOO_MANY_REQUESTS):
            return
        self._is_backing_off = True
        self.flow.pause_reading()
        self.loop.call_later(random.uniform(*_BACK_OFF_SECONDS), self._end_back_off)  # noqa: S311

    def _end_back_off(self) -> None:
        if not self._is_backing_off:
            return
        self._is_backing_off = False
        if not self._is_closed() and not self._is_answering:
            self._expect_next_request()

    def _send(self, response: Response, *, keep_alive: bool) -> None:
        """Send a complete response in one write."""
        self.transport.write(self._serialize(response, keep_alive=keep_alive))
        if not keep_alive:
            self.close()

    def _serialize(self, response: Response, *, keep_alive: bool) -> bytes:
        """Return the bytes of a complete response."""
        defaults = self.server_state.default_headers
        if self._default_header_lines[0] is not defaults:
            self._default_header_lines = defaults, header_lines(defaults)
        parts = (
            STATUS_LINE[response.status_code],
            self._default_header_lines[1],
            header_lines(response.raw_headers),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            bytes(response.body),
        )
        return b"".join(parts)

    # --- what uvicorn's cycle uses of a transport: this protocol takes its place ---

    def write(self, data: bytes) -> None:
        """Send a part of a response."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Return whether nothing more may be sent."""
        return self._is_closed()

    def close(self) -> None:
        """Send what is still buffered, then close the connection.

        If the client may send more, the connection lingers: it reads and discards for a while. A
        connection that is closed with unread data is reset, and the client may lose the response.
        """
        if self._is_closed():
            return
        is_all_read = self._is_between_requests and not self._unparsed and not self._is_backing_off
        if is_all_read or self._is_half_closed or not self.transport.can_write_eof():
            self._deadline.clear()
            self.transport.close()
            if not self.transport.get_write_buffer_size():
                return
        else:
            self._linger_bytes_left = _LINGER_BYTES
            self._unparsed.clear()
            self.transport.write_eof()
            self.flow.resume_reading()
        self._deadline.set(_LINGER_SECONDS)

    def _is_closed(self) -> bool:
        """Return whether the connection is closed, is closing or lingers."""
        return self._linger_bytes_left is not None or self.transport.is_closing()
