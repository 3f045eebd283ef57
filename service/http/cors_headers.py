"""Lets pages of other origins read what the service answers (CORS). Knows no route.

Starlette's `CORSMiddleware` decides; here its headers become part of what is decided once for each
head, since the fast path passes no ASGI middleware. Credentials are never allowed: the service has
no cookies, and a key is sent in a header.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.edge.cors_origins import ANY
from service.errors import CrossOriginError
from service.http.error_responses import domain_error_response

_METHODS = ("GET", "HEAD", "POST")
_REQUEST_HEADERS = (
    "authorization",
    "content-encoding",
    "content-type",
    "inference-header-content-length",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-request-id",
)
_EXPOSED_HEADERS = (
    "X-Request-ID",
    "Inference-Header-Content-Length",
    "Retry-After",
    "WWW-Authenticate",
    "traceresponse",
)
"""Response headers that clients read and that browsers would hide from pages of other origins."""
_OK = 200
_MAX_SHOWN_CHARACTERS = 100
"""A refusal quotes at most this many characters of a method or of a header's name."""
_VARY = (b"vary", b"Origin")


class CrossOrigin:
    """Which origins may read answers, and the headers that tell a browser so."""

    def __init__(self, origins: Sequence[str]) -> None:
        """Take the origins that `parse_origins` returns."""
        self._cors = CORSMiddleware(
            _nothing,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
        )
        exposed = b"access-control-expose-headers", ", ".join(_EXPOSED_HEADERS).encode()
        self._headers = [_VARY, exposed]

    def response_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """Return what is added to the answer to a request with this header Origin."""
        if origin is None or not self._cors.is_allowed_origin(origin):
            return [_VARY]
        allowed = ANY if self._cors.allow_all_origins else origin
        return [*self._headers, (b"access-control-allow-origin", allowed.encode("latin-1"))]

    def preflight_response(self, scope: Scope) -> Response | None:
        """Return the answer to a request by which a browser asks for leave; None to any other."""
        headers = Headers(scope=scope)
        if not (
            scope["method"] == "OPTIONS"
            and "origin" in headers
            and "access-control-request-method" in headers
        ):
            return None
        decided = self._cors.preflight_response(request_headers=headers)
        decided_headers = {
            name: value
            for name, value in decided.headers.items()
            if name.startswith("access-control-") or name == "vary"
        }
        if decided.status_code == _OK:
            return Response(headers=decided_headers)
        refusal = domain_error_response(CrossOriginError(self._why_refused(headers)))
        refusal.headers.update(decided_headers)
        return refusal

    def _why_refused(self, asked: Headers) -> str:
        """Return the first reason why a page may not send what its browser asks for."""
        if not self._cors.is_allowed_origin(asked["origin"]):
            return "Pages of this origin may not send requests; add it with --cors-origins."
        method = asked["access-control-request-method"]
        if method not in _METHODS:
            return (
                f"Pages of other origins may not send {method[:_MAX_SHOWN_CHARACTERS]!r}; send "
                f"{', '.join(_METHODS)}."
            )
        names = asked.get("access-control-request-headers")
        for name in () if names is None else map(str.strip, names.split(",")):
            if name.lower() not in self._cors.allow_headers:
                return (
                    "Pages of other origins may not send the header "
                    f"{name[:_MAX_SHOWN_CHARACTERS]!r}; leave it out."
                )
        return (
            "Pages of a public network may not send requests to a service in a private one; open "
            "the page from that network, or publish the service."
        )


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise NotImplementedError("only the decisions of the middleware are used")
