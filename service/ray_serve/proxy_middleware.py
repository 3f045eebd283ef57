"""What stands around Serve's proxy on each node: the service's limits, headers and errors.

Serve imports it where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names
`service.ray_serve.proxy_middleware:middlewares`. Knows no model and no replica.
"""

from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.codecs.compression import body_too_large_error, is_declared_too_large
from service.errors import (
    ROUTING_CODES,
    BodyTooLargeError,
    DeadlineError,
    NotReadyError,
    OverloadedError,
)
from service.http.error_responses import domain_error_response, error_response
from service.http.middleware import REQUEST_ID_HEADER, well_formed_id
from service.http.response_headers import API_HEADERS, SECURITY_HEADERS
from service.settings import ServiceSettings

_LOST = "The replica that was to answer has ended; send the request again."
_INSTEAD_OF_SERVE: Mapping[int, Callable[[], Response]] = {
    404: lambda: error_response(
        404, ROUTING_CODES[404], "No application is deployed at this path; see serve status."
    ),
    408: lambda: domain_error_response(
        DeadlineError("No replica has answered within request_timeout_s; send the request again.")
    ),
    503: lambda: domain_error_response(
        OverloadedError("No replica can take the request now; try again in a second.")
    ),
}
"""The answers in place of those that Serve writes itself, by their status."""
_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_CONTENT_TYPE, _PLAIN_TEXT = b"content-type", b"text/plain"
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS]


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its proxy; the environment says how large a body may be."""
    return [Middleware(ProxyEdge, max_body_bytes=ServiceSettings().max_body_bytes)]


class ProxyEdge:
    """ASGI middleware around Serve's proxy.

    Serve answers nothing where a replica dies under a request, which uvicorn would turn into 500;
    it answers in plain text where no replica is free; and it buffers bodies of any size.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; pass any other event on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        # Serve and the replica take it from the request.
        request_id = headers.setdefault(REQUEST_ID_HEADER, well_formed_id(None))
        answer = _Answer(scope, receive, send, well_formed_id(request_id))
        body = _LimitedBody(receive, self._max_body_bytes)
        if body.is_declared_too_large(headers):
            await answer.send_response(domain_error_response(body.error))
            return
        await self._app(scope, body.receive, answer.send)
        if not answer.has_begun:
            error = body.error if body.is_too_large else NotReadyError(_LOST)
            await answer.send_response(domain_error_response(error))


class _LimitedBody:
    """Receives a body; where that is too large, as if the client had hung up."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._received = 0
        self.is_too_large = False

    @property
    def error(self) -> BodyTooLargeError:
        return body_too_large_error(self._limit)

    def is_declared_too_large(self, headers: Headers) -> bool:
        return is_declared_too_large(headers.get("Content-Length", "0"), self._limit)

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.is_too_large = self._received > self._limit
        return {"type": "http.disconnect"} if self.is_too_large else message


class _Answer:
    """Sends one response: that of a replica with more headers, or one in place of Serve's own."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._request_id = request_id
        self.has_begun = False
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            self.has_begun = True
            own = _replacement(message)
            if own is not None:
                self._is_replaced = True
                await self.send_response(own)
                return
            message["headers"] = [*_without_second_id(message["headers"]), *_HEADERS]
        await self._send(message)

    async def send_response(self, response: Response) -> None:
        response.raw_headers = [*response.raw_headers, *API_HEADERS, *_HEADERS]
        response.headers[REQUEST_ID_HEADER] = self._request_id
        await response(self._scope, self._receive, self._send)


def _replacement(start: Message) -> Response | None:
    """Return the answer in place of one that Serve has written itself; None: it is a replica's."""
    content_type = dict(start["headers"]).get(_CONTENT_TYPE, b"")
    build = _INSTEAD_OF_SERVE.get(start["status"])
    return build() if build is not None and content_type.startswith(_PLAIN_TEXT) else None


def _without_second_id(headers: Sequence[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    """Return headers without the request id that Serve adds behind the replica's own."""
    ids = [each for each in headers if each[0].lower() == _REQUEST_ID]
    return [each for each in headers if each[0].lower() != _REQUEST_ID] + ids[:1]
