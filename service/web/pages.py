"""The pages for people and the static files that they load, under a Content-Security-Policy."""

from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from service.api.routes import new_router
from service.keys.scopes import public
from service.web.static_files import read_files

_STATIC = Path(__file__).with_name("static")
_PAGES = {"/": "index.html", "/ui/models": "models.html", "/ui/monitor": "monitor.html"}
"""The file of each page."""
_NOT_FOUND = 404
_DENY_ALL = {
    "default-src": ("'none'",),
    "base-uri": ("'none'",),
    "form-action": ("'none'",),
    "frame-ancestors": ("'none'",),
}
_SOURCES = {
    "script-src": ("'self'",),
    "style-src": ("'self'",),
    "img-src": ("'self'", "blob:", "data:"),  # blob: an image that the user has chosen
    "connect-src": ("'self'",),
}


def router() -> APIRouter:
    """Build the routes of the pages and of their scripts, styles and icons."""
    routes = new_router("operations")
    for path, file in _PAGES.items():
        _add_page(routes, path, (_STATIC / file).read_text(encoding="utf-8"))
    files = read_files(_STATIC)

    @routes.api_route("/ui/static/{file:path}", methods=["GET", "HEAD"], include_in_schema=False)
    @public
    async def static_file(file: str, request: Request) -> Response:
        if file not in files:
            raise HTTPException(_NOT_FOUND)
        return files[file].answer(request)

    return routes


def security_headers(sources: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Build headers that let a page load only from `sources`, and no other page frame it."""
    policy = "; ".join(
        " ".join((directive, *allowed)) for directive, allowed in {**_DENY_ALL, **sources}.items()
    )
    return {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _add_page(routes: APIRouter, path: str, html: str) -> None:
    headers = security_headers(_SOURCES) | {"Cache-Control": "no-cache"}

    @routes.get(path, summary="A page for people", response_class=HTMLResponse, name=path)
    @public
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)
