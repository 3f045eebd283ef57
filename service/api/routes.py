"""HTTP in, HTTP out; no numerics."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from service.errors import ControlDisabledError, InvalidQueryError
from service.http.middleware import REQUEST_ID
from service.http.protocol import CONTROL
from service.settings import ServiceSettings

MANY_NUMBERS = 2**14
"""In an answer: more are written beside the event loop, which they would hold up."""


class Answer(Response):
    """A whole answer of status 200, in less than half the time that Starlette needs for one."""

    def __init__(
        self,
        body: bytes,
        media_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Take the body, and further headers, their names in small letters."""
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type),
            *headers,
        ]


def json_response(content: Mapping[str, Any]) -> Answer:
    """Serialise once, floats in full; NumPy's numbers with the digits of their own precision."""
    return Answer(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


async def rows_response(
    content: dict[str, Any], rows: Callable[[], Sequence[Any]], count: int
) -> Answer:
    """Serialise an answer and its predictions; many of them beside the event loop.

    rows: makes the predictions. count: of the numbers in all of them.
    """
    if count <= MANY_NUMBERS:
        content["predictions"] = rows()
        return json_response(content)
    return await asyncio.to_thread(_in_pieces, content, rows)


def _in_pieces(content: Mapping[str, Any], rows: Callable[[], Sequence[Any]]) -> Answer:
    """Serialise row by row: to do it in one go would keep Python's lock all the time."""
    written = b",".join([_dumped(row) for row in rows()])
    return json_response({**content, "predictions": orjson.Fragment(b"[" + written + b"]")})


def _dumped(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def refuse_repeated_parameters(request: Request) -> None:
    """Refuse a query parameter that is given twice, rather than pick one of its values."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidQueryError(f"Query parameter {name!r} is given twice; give it once.")
        seen.add(name)


_OF_PAGES = ("origin", "sec-fetch-site")
"""Headers that browsers alone send, and no page can leave out."""


class NamedRoute(Route):
    """A route that is counted under its path, as FastAPI's own are, without their cost."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Note the route in the scope, where the middleware finds it."""
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope["route"] = self
        return match, child_scope


def require_control(request: Request, settings: ServiceSettings) -> None:
    """Refuse whoever may not change which models are in service.

    By which listener a request came decides it, never what the request says of itself: a proxy on
    this machine need not say for whom it asks.

    Raises:
        ControlDisabledError: by the settings, or because the request comes from a web page.
    """
    if settings.control == "nobody":
        raise ControlDisabledError("Models cannot be changed over HTTP here (--control nobody).")
    if any(name in request.headers for name in _OF_PAGES):  # which a browser here happens to show
        raise ControlDisabledError("Models cannot be changed from a web page; use a client.")
    if settings.control == "local" and not request.scope.get(CONTROL):
        raise ControlDisabledError(
            "Models can be changed by the control listener alone; use python -m service.control on "
            "the server's own machine, or start the server with --control anyone."
        )


def request_id(request: Request) -> str:
    """Return the request's id as its client gave it, or the one the middleware made."""
    return str(request.scope.get(REQUEST_ID, ""))
