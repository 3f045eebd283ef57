"""The API reference: /docs (Swagger UI), /redoc (Redoc), their files, and /openapi.json.

Everything comes from the service itself, at relative URLs, under a Content-Security-Policy without
inline scripts. Knows no model.
"""

import asyncio
import gzip
from collections.abc import Callable

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute

from service.api.routes import RawResponse, new_router
from service.edge.trusted_proxies import ReverseProxies
from service.http.request_body import header
from service.keys.scopes import public
from service.web import api_reference_files
from service.web.pages import security_headers
from service.web.static_files import accepts_gzip

_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""A style element without content. Redoc adds one, which it fills rule by rule, as scripts may."""
_SCROLLBAR_STYLE = "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
"""The other style that Redoc adds. The page looks the same without it."""
_DOCS_HEADERS = security_headers(
    {
        "script-src": ("'self'",),
        "style-src": ("'self'",),
        "img-src": ("'self'", "blob:", "data:"),  # blob: an image that a route has answered
        "connect-src": ("'self'",),
    }
)
_REDOC_HEADERS = security_headers(
    {
        "script-src": ("'self'",),
        "style-src": ("'self'", _EMPTY_STYLE, _SCROLLBAR_STYLE),
        "img-src": ("'self'", "data:"),
        "connect-src": ("'self'",),
    }
)
_ASK_EACH_TIME = "no-cache"
_FOR_EVER = (b"cache-control", b"public, max-age=31536000, immutable")
_VARY, _PACKED = (b"vary", b"Accept-Encoding"), (b"content-encoding", b"gzip")
_NOT_FOUND = 404


def router(describe: Callable[[str], bytes], proxies: ReverseProxies) -> APIRouter:
    """Build the routes of both pages, of their files and of the description.

    describe: returns the description for clients below a path prefix, JSON in gzip's format.
    """
    routes = new_router("operations")
    docs, redoc = (
        api_reference_files.page("docs.html"),
        api_reference_files.page("redoc.html"),
    )
    docs_headers, redoc_headers = (
        {**headers, "Cache-Control": _ASK_EACH_TIME} for headers in (_DOCS_HEADERS, _REDOC_HEADERS)
    )

    @public
    async def swagger_page() -> HTMLResponse:
        return HTMLResponse(docs, headers=docs_headers)

    @public
    async def redoc_page() -> HTMLResponse:
        return HTMLResponse(redoc, headers=redoc_headers)

    @public
    async def file(request: Request, edition: str, name: str) -> Response:
        return await _file(request, edition, name)

    @public
    async def description(request: Request) -> Response:
        forwarded = header(request.scope, b"x-forwarded-prefix")
        peer = request.client.host if request.client else None
        packed = describe(proxies.public_prefix(peer, forwarded))
        headers = [(b"cache-control", _ASK_EACH_TIME.encode()), _VARY]
        if not accepts_gzip(request):
            return RawResponse(gzip.decompress(packed), headers=headers)
        return RawResponse(packed, headers=[*headers, _PACKED])

    for path, endpoint in (
        ("/docs", swagger_page),
        ("/redoc", redoc_page),
        ("/docs/{edition}/{name}", file),
        ("/openapi.json", description),
    ):
        routes.routes.append(
            APIRoute(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        )
    return routes


async def _file(request: Request, edition: str, name: str) -> Response:
    """Return a file of the current edition; files of others are not kept."""
    if edition != api_reference_files.edition():
        raise HTTPException(_NOT_FOUND)
    is_packed = accepts_gzip(request)
    read = api_reference_files.compressed if is_packed else api_reference_files.content
    try:
        body = await asyncio.to_thread(read, name)
    except KeyError:
        raise HTTPException(_NOT_FOUND) from None
    headers = [_FOR_EVER, _VARY, *([_PACKED] if is_packed else [])]
    return RawResponse(body, api_reference_files.media_type(name), headers)
