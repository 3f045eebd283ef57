"""HTTP/1.1 on one connection, for clients that may be hostile. Knows no route.

uvicorn's protocol, with what it lacks against the open internet. One request is parsed at a time:
what follows it waits unparsed, and the client with it. Heads, bodies, answers and idle connections
are bounded in bytes and in time, and each client in its share of the server. Upgrade is ignored, so
that a body is always a body (RFC 9112, 6.3, and RFC 9110, 7.8).
"""

import asyncio
import math
import random
from asyncio import TimerHandle
from typing import Any
from urllib.parse import unquote

import httptools
from httptools import HttpParserError, HttpParserUpgrade
from starlette.responses import Response
from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.http.clients import Client, Clients
from service.http.framing import RefusedHeadError, body_length, header_lines, without_upgrade
from service.http.responses import http_error
from service.settings import ServiceSettings

CLIENT = "dropserve.client"
"""Where a request's scope has the `Client` that sent it."""
CONTROL = "dropserve.control"
"""Where it has whether it came by the control listener, which alone may change models."""
HUNG_UP = "dropserve.hung_up"
"""Where it has that the client is gone, once it is."""

MAX_HEAD_BYTES = 2**16
"""Of the target, headers and trailers together."""

_URGENT = (b"GET /health/", b"GET /v2/health/")
"""What a request begins with by which somebody decides whether the server lives."""
_END_OF_HEAD = b"\r\n\r\n"
_CHUNKED_PIECE_BYTES = 2**14
_CHUNKED_TURN_BYTES, _CHUNKED_TURN_PIECES = 2**16, 2_000
"""Of a chunked body, for which the parser calls back once a chunk, before others have a turn."""
_UNREAD_BODY_BYTES = 2**20
"""Of a body that the application has not asked for yet; more is left with the client."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2**24
"""What is still read of a client that was refused, and thrown away, so that it sees the refusal."""
_DRAIN_SECONDS = 1.0
"""How long a connection at rest is left open after SIGTERM: a last request may be on its way."""
_HALF_CLOSED_SECONDS = 2.0
"""How long a request is answered whose client sends no more: most such clients are gone."""
_REST_SECONDS = (0.5, 1.0)
"""How long a connection is not read after a 503: a client that asks again at once waits."""


class Cycle(RequestResponseCycle):
    """One request and its answer by ASGI; remembers the answer's status."""

    status = 0

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Send a part; an answer that comes before the whole request ends the connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            protocol: HttpProtocol = self.transport  # type: ignore[assignment]
            if self.more_body or protocol.is_last_answer():
                self.keep_alive = False
        await super().send(message)  # type: ignore[arg-type]


class HttpProtocol(HttpToolsProtocol):
    """One connection. Its application has `clients` and `settings` as attributes."""

    is_control = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        application: Any = self.app
        settings: ServiceSettings = application.settings
        self._clients: Clients = application.clients
        self._client: Client = self._clients.trusted
        self._head_seconds = settings.head_timeout_seconds
        self._write_seconds = settings.write_timeout_seconds
        self._received = bytearray()
        """What has come and is not parsed: of requests behind the one that is being answered."""
        self._buffered = 0
        """Bytes that this connection holds of its client's share."""
        self._unsent = 0
        """Of these, what was waiting to be sent when the client stopped reading."""
        self._last_of_head = b""
        """Up to three bytes, in which its end may have begun."""
        self._has_first_line = False
        self._first_line_end = b""
        """The last byte of the first line that has come."""
        self._fields: list[tuple[bytes, bytes]] = []
        """The headers of the request."""
        self._head_bytes = 0
        self._unread = 0
        """Bytes of which the parser has made nothing yet."""
        self._body_left: int | None = 0
        """Bytes of the body that are still to come; None: it comes in chunks."""
        self._is_between = True
        """Two requests: nothing of the next one has come."""
        self._has_head_begun = False
        """Since its time was set."""
        self._is_in_body = False
        self._is_answering = False
        """Its request is whole, and its answer is not."""
        self._is_upgrade = False
        self._is_draining = False
        self._is_half_closed = False
        self._is_resting = False
        self._lingers_for: int | None = None
        """Bytes that are still thrown away; None: it does not linger."""
        self._has_answered = False
        """A request in the present turn."""
        self._is_parse_due = False
        self._last_status = 0
        self._task: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self._timer: TimerHandle | None = None
        self._rings_at = math.inf
        self._write_timer: TimerHandle | None = None
        self._default_lines: tuple[object, bytes] = (None, b"")
        """Of uvicorn's list, which it makes anew every second, and what it comes to."""

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless its client has too many."""
        super().connection_made(transport)
        host = None if self.is_control or self.client is None else self.client[0]
        client = self._clients.connect(host, self)
        if client is None:
            self._send(http_error(503), keep_alive=False)
            return
        self._client = client
        self._is_draining = bool(getattr(self.server_state, "is_draining", False))
        self._expire_in(_DRAIN_SECONDS if self._is_draining else self._head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of all that the connection holds, and end what answers it."""
        self._clients.disconnect(self._client, self)
        self._buffer(-self._buffered)
        self._received.clear()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None
        if self.scope is not None:
            self.scope[HUNG_UP] = True  # type: ignore[literal-required]
        super().connection_lost(exc)
        if self._is_answering:
            self._cancel_answer()

    def _cancel_answer(self) -> None:
        """End what answers a client that is gone; what waits for its body is told by that."""
        if self._task is not None:
            self._task.cancel()

    def evict(self) -> bool:
        """Close the connection if no request is under way on it, and tell whether that was so."""
        if self._is_answering or self._is_in_body or self._received:
            return False
        self._clients.disconnect(self._client, self)
        self.transport.abort()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]
        """Go on for a while where the client awaits an answer and says that it asks no more."""
        if self._lingers_for is not None or not (self._is_answering or self._is_parse_due):
            return False
        self._is_half_closed = True
        if not self._received:  # of several requests each would start the time anew
            self.loop.call_later(_HALF_CLOSED_SECONDS, self._end_half_closed)
        return True

    def _end_half_closed(self) -> None:
        if self._is_answering and not self._is_closed():
            self.transport.abort()

    def shutdown(self) -> None:
        """Answer what is under way, and one last request where it comes soon."""
        self._is_draining = True
        if self._is_resting:
            self._end_rest()  # the request that waits there has an answer, too
        if not self._is_answering and not self._is_in_body:
            self._expire_in(_DRAIN_SECONDS)

    def is_last_answer(self) -> bool:
        """Tell whether the connection ends with the present answer, whatever the client wishes."""
        return self._is_draining or (self._is_half_closed and not self._received)

    # --- time ---

    def _expire_in(self, seconds: float | None) -> None:
        """Let the present state of the connection last no longer; None: for as long as it takes.

        The timer is left as it is where it rings earlier: to set one for each request takes longer.
        """
        if seconds is None:
            self._deadline = None
            return
        self._deadline = deadline = self.loop.time() + seconds
        if deadline >= self._rings_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._on_timer)
        self._rings_at = self._timer.when()

    def _on_timer(self) -> None:
        self._timer, self._rings_at = None, math.inf
        if self._deadline is None:
            return
        left = self._deadline - self.loop.time()
        if left > 0:
            self._set_timer(left)
        else:
            self._deadline = None
            self._expire()

    def _expire(self) -> None:
        """End a connection that lingers, rests or sends its head for too long."""
        is_amid_head = not self._is_between and not self._is_in_body
        if self._lingers_for is not None or self.transport.is_closing() or self._unsent:
            self.transport.abort()
        elif is_amid_head and not self._is_draining:
            self._send(http_error(408), keep_alive=False)
        else:
            self.close()

    def pause_writing(self) -> None:
        """Limit the time, and the bytes, of a client that does not read what it is sent."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        if not self._buffer(self._unsent):
            self.transport.abort()
            return
        self._write_timer = self.loop.call_later(self._write_seconds, self._stop_waiting_to_write)

    def resume_writing(self) -> None:
        """Go on with a client that reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._buffer(-self._unsent)
        self._unsent = 0
        super().resume_writing()
        if self._received:
            self._parse_soon()

    def _stop_waiting_to_write(self) -> None:
        self.transport.abort()

    def _buffer(self, size: int) -> bool:
        self._buffered += size
        return self._clients.buffer(self._client, size)

    def _release(self) -> None:
        """Give back what the request took of the client's share of bytes."""
        kept = self._unsent + len(self._received)
        if self._buffered != kept:
            self._buffer(kept - self._buffered)

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        """Parse what has come, up to the end of one request."""
        if self._lingers_for is not None:
            self._throw_away(len(data))
        elif self._is_answering or self._received or self._is_resting or self.flow.write_paused:
            self._keep(data)
        elif self._is_between and not self._client.takes_turn(
            self.loop, is_urgent=data.startswith(_URGENT)
        ):
            self._keep(data)
            self._wait_for_turn()
        else:
            end = self._parse(data)
            if end < len(data) and not self._is_closed():
                self._keep(data[end:])
                self._parse_soon()

    def _keep(self, data: bytes) -> None:
        """Leave what has come unparsed, and the rest of it with the client."""
        self._received += data
        if self._buffer(len(data)):
            self.flow.pause_reading()
        else:
            self.transport.abort()

    def _throw_away(self, size: int) -> None:
        assert self._lingers_for is not None
        self._lingers_for -= size
        if self._lingers_for < 0:
            self.transport.abort()

    def _parse_soon(self) -> None:
        """Parse what has waited, once others have had a turn."""
        if not self._is_parse_due:
            self._is_parse_due = True
            self.loop.call_soon(self._parse_received)

    def _wait_for_turn(self) -> None:
        """Parse what has waited when it is this connection's turn."""
        if not self._is_parse_due:
            self._is_parse_due = True
            self._client.waiting.append(self)

    def _parse_received(self) -> None:
        self._is_parse_due = False
        if not self._can_parse():
            return
        if self._is_between and not self._client.takes_turn(self.loop):
            self._wait_for_turn()
        else:
            self._parse_kept()

    def take_turn(self) -> None:
        """Begin the request that has waited."""
        self._is_parse_due = False
        if self._can_parse():
            self._parse_kept()

    def _can_parse(self) -> bool:
        return not (
            self._is_answering
            or self._is_resting
            or self._is_closed()
            or self.flow.write_paused
            or not self._received
        )

    def _parse_kept(self) -> None:
        end = self._parse(self._received)
        del self._received[:end]  # which copies nothing
        if self._is_closed():
            return
        self._buffer(-end)
        if self._received:
            self._parse_soon()
        elif not self._is_answering:
            self.flow.resume_reading()

    def _parse(self, data: bytes | bytearray) -> int:
        """Parse up to the end of one request, or as much as is fair; return how far that is."""
        start = chunked_bytes = chunked_pieces = 0
        self._has_answered = False
        while start < len(data) and not (
            self._is_answering or self._has_answered or self._is_closed()
        ):
            if chunked_bytes >= _CHUNKED_TURN_BYTES or chunked_pieces >= _CHUNKED_TURN_PIECES:
                break
            end = self._end_of_piece(data, start)
            if self._is_in_body and self._body_left is None:
                chunked_bytes += end - start
                chunked_pieces += 1
            self._unread += end - start
            if not (self._is_in_body or self._has_first_line) and not self._is_first_line_plain(
                data[start:end]
            ):
                self._refuse_request(400)
                return start
            # bytes() of bytes copies nothing; a bytearray may change while the parser reads it.
            self._feed(bytes(data if end - start == len(data) else data[start:end]))
            start = end
        if start == len(data) and not self._is_closed():
            self._limit_head()
        return start

    def _is_first_line_plain(self, piece: bytes | bytearray) -> bool:
        """Tell whether a request's first line has single spaces alone; the parser takes more."""
        if not self._first_line_end:
            piece = piece.lstrip(b"\r\n")  # empty lines before a request (RFC 9112, 2.2)
        line, end, _ = piece.partition(b"\r\n")
        is_plain = b"  " not in self._first_line_end + line
        self._has_first_line = bool(end)
        self._first_line_end = bytes(line[-1:]) or self._first_line_end
        return is_plain

    def _limit_head(self) -> None:
        """Bound a head of which the end has not come."""
        if self._is_between or self._is_in_body or self._is_answering:
            return
        if self._unread > MAX_HEAD_BYTES:
            self._send(http_error(431), keep_alive=False)  # a header without an end
        elif self._has_head_begun:
            self._has_head_begun = False
            self._expire_in(self._head_seconds)

    def _end_of_piece(self, data: bytes | bytearray, start: int) -> int:
        """Find how far the parser may go: not beyond the end of a head, nor of a body.

        A body in chunks ends with an empty line, too, though not every empty line is its end.
        """
        most = len(data)
        if self._is_in_body:
            if self._body_left is not None:
                end = min(start + self._body_left, most)
                self._body_left -= end - start
                return end
            most = min(start + _CHUNKED_PIECE_BYTES, most)
        before = self._last_of_head
        # The end may have come in part with the piece before.
        if before and (found := (before + data[start : start + 3]).find(_END_OF_HEAD)) >= 0:
            end = start + found + len(_END_OF_HEAD) - len(before)
        else:
            found = data.find(_END_OF_HEAD, start, most)
            end = most if found < 0 else found + len(_END_OF_HEAD)
        self._last_of_head = (before + data[max(start, end - 3) : end])[-3:]
        return end

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except HttpParserUpgrade:
            if self._is_upgrade:
                self._read_without_upgrade()
            else:  # HTTP/2 with prior knowledge, say
                self._send(http_error(505), keep_alive=False)
        except HttpParserError as error:
            cause = error.__context__
            status = cause.status if isinstance(cause, RefusedHeadError) else 400
            self._refuse_request(status)

    def _read_without_upgrade(self) -> None:
        self._is_upgrade = False
        head = without_upgrade(self.parser.get_method(), self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self._feed(head)

    def _refuse_request(self, status: int) -> None:
        """Refuse what is no request, unless an answer to it is on its way already."""
        if self._is_closed():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self._send(http_error(status), keep_alive=False)

    # --- what the parser finds ---

    def on_message_begin(self) -> None:
        """Expect a request."""
        self._is_between = False
        self._has_head_begun = True
        self._head_bytes = self._unread = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Take a piece of its target."""
        self._count_head(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer; as uvicorn does, but for the count."""
        self._count_head(len(name) + len(value) + 4)  # with the colon and the line's end
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _count_head(self, size: int) -> None:
        self._unread = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise RefusedHeadError(431)

    def on_headers_complete(self) -> None:
        """Begin the request, once its head says without doubt where it ends."""
        self._last_of_head = b""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._is_upgrade = True
            return
        parser = self.parser
        self._body_left = body_length(parser.get_method(), parser.get_http_version(), self.headers)
        self._is_in_body = self._body_left != 0
        self._expire_in(None)
        self._fields, self.headers = self.headers, []  # what is still to come are trailers
        self._begin_request()

    def _begin_request(self) -> None:
        """Hand the request to the application, as an ASGI task."""
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
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode("ascii") + url.path,
            "query_string": url.query or b"",
            "headers": self._fields,
            "state": self.app_state.copy(),
            CLIENT: self._client,
            CONTROL: self.is_control,
        }
        self.scope = scope  # type: ignore[assignment]
        self.cycle = Cycle(
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
        self._task = self.loop.create_task(self.cycle.run_asgi(self.app))
        self._task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._task)

    def on_body(self, body: bytes) -> None:
        """Take a piece of its body, within the client's share of bytes."""
        self._unread = 0
        if self.cycle.response_complete:
            return
        if not self._buffer(len(body)):
            self._refuse_request(503)
            return
        self.cycle.body += body
        if len(self.cycle.body) > _UNREAD_BODY_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the request; what comes now is another."""
        if self._is_upgrade:
            return
        self._is_between = True
        self._is_in_body = self._has_first_line = False
        self._last_of_head = self._first_line_end = b""
        self._is_answering = self._end_request()

    def _end_request(self) -> bool:
        """Tell the application that the body is whole; return whether an answer is awaited."""
        super().on_message_complete()
        return not self.cycle.response_complete

    # --- what goes out ---

    def on_response_complete(self) -> None:
        """Turn to the next request, or rest until there is one, but not for ever."""
        self.server_state.total_requests += 1
        self._task = None
        self._is_answering = False
        self._has_answered = True
        if self._buffered:
            self._release()
        if self._lingers_for is not None or self.transport.is_closing():
            return
        if isinstance(self.cycle, Cycle):
            self._last_status = self.cycle.status
        if self._last_status == 503:
            self._rest()
        if not self._is_resting:
            self._turn_to_next()

    def _turn_to_next(self) -> None:
        if self._received:
            self._parse_soon()
        elif self.flow.read_paused:
            self.flow.resume_reading()
        self._expire_in(self.timeout_keep_alive)

    def _rest(self) -> None:
        """Read nothing for a while of a client that was refused: another attempt would be too."""
        if self.is_control:
            return
        self._is_resting = True
        self.flow.pause_reading()
        self.loop.call_later(random.uniform(*_REST_SECONDS), self._end_rest)  # noqa: S311

    def _end_rest(self) -> None:
        if not self._is_resting:
            return
        self._is_resting = False
        if not self._is_closed() and not self._is_answering:
            self._turn_to_next()

    def _send(self, response: Response, *, keep_alive: bool) -> None:
        """Send a whole answer in one write."""
        defaults = self.server_state.default_headers
        if self._default_lines[0] is not defaults:
            self._default_lines = defaults, header_lines(defaults)
        parts = (
            STATUS_LINE[response.status_code],
            self._default_lines[1],
            header_lines(response.raw_headers),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            bytes(response.body),
        )
        self.transport.write(b"".join(parts))
        if not keep_alive:
            self.close()

    # What uvicorn's cycle uses of a transport.

    def write(self, data: bytes) -> None:
        """Send a part of an answer."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Tell whether nothing more is to be sent."""
        return self._is_closed()

    def close(self) -> None:
        """Send what is left and close; where more may come, throw that away for a while.

        A connection that is closed while there is something to read is reset, and the client may
        then not see the answer.
        """
        if self._is_closed():
            return
        is_all_read = self._is_between and not self._received and not self._is_resting
        if is_all_read or self._is_half_closed or not self.transport.can_write_eof():
            self._deadline = None
            self.transport.close()
            if not self.transport.get_write_buffer_size():
                return
        else:
            self._lingers_for = _LINGER_BYTES
            self._received.clear()
            self.transport.write_eof()
            self.flow.resume_reading()
        self._expire_in(_LINGER_SECONDS)

    def _is_closed(self) -> bool:
        return self._lingers_for is not None or self.transport.is_closing()
