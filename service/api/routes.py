"""What the routes share: fast responses, bodies of images, query parameters, access control."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service.codecs.body_to_images import FORM_TYPE, JSON_TYPE
from service.errors import ControlDisabledError, InvalidQueryError
from service.http.asgi_request import CONTROL
from service.http.middleware import REQUEST_ID
from service.sandbox.sandboxed_image_reader import IMAGE_TYPES
from service.settings import ServiceSettings

MAX_INLINE_NUMBERS = 2**14
"""A response with more numbers is serialised in a thread, so as not to block the event loop."""


class RawResponse(Response):
    """A complete response of status 200. It takes less than half the time of Starlette's."""

    def __init__(
        self,
        body: bytes,
        media_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Set the body, and additional headers, whose names must be in lower case."""
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type),
            *headers,
        ]


def json_response(content: Mapping[str, Any]) -> RawResponse:
    """Build a JSON response; NumPy's numbers get the digits of their own precision."""
    return RawResponse(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


async def predictions_response(
    content: dict[str, Any], rows: Callable[[], Sequence[Any]], count: int
) -> RawResponse:
    """Build a JSON response with `predictions`; many predictions are serialised in a thread.

    rows: builds the predictions. count: numbers in all predictions together.
    """
    if count <= MAX_INLINE_NUMBERS:
        content["predictions"] = rows()
        return json_response(content)
    return await asyncio.to_thread(_serialize_by_row, content, rows)


def _serialize_by_row(content: Mapping[str, Any], rows: Callable[[], Sequence[Any]]) -> RawResponse:
    """Serialise each row by itself; a single orjson call would hold the GIL throughout."""
    serialised = b",".join([_dumps(row) for row in rows()])
    return json_response({**content, "predictions": orjson.Fragment(b"[" + serialised + b"]")})


def _dumps(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def refuse_repeated_parameters(request: Request) -> None:
    """Refuse a query parameter that occurs twice, rather than ignore one of its values."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidQueryError(f"Query parameter {name!r} is given twice; give it once.")
        seen.add(name)


def new_router(
    tag: str, prefix: str = "", responses: dict[int | str, dict[str, Any]] | None = None
) -> APIRouter:
    """Return a router of documented routes, which refuse a query parameter that is given twice."""
    once = Depends(refuse_repeated_parameters)
    return APIRouter(prefix=prefix, tags=[tag], responses=responses, dependencies=[once])


def image_request_body(json_schema: str, max_files: int | None = None) -> dict[str, Any]:
    """Describe the bodies in which images may be sent, for OpenAPI.

    json_schema: the name of the schema of a JSON body. max_files: most files of a form; None: no
    limit is described.
    """
    binary = {"type": "string", "format": "binary"}
    files: dict[str, Any] = {"type": "array", "items": binary, "minItems": 1}
    if max_files is not None:
        files["maxItems"] = max_files
    form = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    content: dict[str, Any] = {
        JSON_TYPE: {"schema": {"$ref": f"#/components/schemas/{json_schema}"}},
        FORM_TYPE: {"schema": form},
        **{kind: {"schema": binary} for kind in IMAGE_TYPES},
    }
    return {"requestBody": {"required": True, "content": content}}


_BROWSER_HEADERS = ("origin", "sec-fetch-site")
"""Request headers that only browsers send, and that no web page can suppress."""


def require_control(request: Request, settings: ServiceSettings) -> None:
    """Refuse a request that may not change the active versions.

    The listener on which the request arrived decides, never its headers or address, since a proxy
    on this machine need not forward the address of its client.

    Raises:
        ControlDisabledError: the settings forbid it, or the request comes from a web page.
    """
    if settings.control == "nobody":
        raise ControlDisabledError("Models cannot be changed over HTTP here (--control nobody).")
    # A page of any origin may send requests from a browser on this machine.
    if any(name in request.headers for name in _BROWSER_HEADERS):
        raise ControlDisabledError("Models cannot be changed from a web page; use a client.")
    if settings.control == "local" and not request.scope.get(CONTROL):
        raise ControlDisabledError(
            "Models can be changed by the control listener alone; use python -m service.control on "
            "the server's own machine, or start the server with --control anyone."
        )


def request_id(request: Request) -> str:
    """Return the request's id, which its client has sent or the middleware has generated."""
    return str(request.scope.get(REQUEST_ID, ""))
