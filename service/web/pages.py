"""The pages / and /docs, each with a Content-Security-Policy, and the description /openapi.json."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute

from service.api.routes import RawResponse, new_router

_OPENAPI_PATH = "/openapi.json"
_INDEX_PAGE = Path(__file__).with_name("index.html")
_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"
_SWAGGER_ICON = "https://fastapi.tiangolo.com/img/"
_DENY_ALL = {
    "default-src": ("'none'",),
    "base-uri": ("'none'",),
    "form-action": ("'none'",),
    "frame-ancestors": ("'none'",),
}


def router(describe: Callable[[], bytes]) -> APIRouter:
    """Build the routes of the two pages and of the description; `describe` returns its JSON."""
    routes = new_router("operations")
    html = _INDEX_PAGE.read_text(encoding="utf-8")
    headers = _security_headers({"style-src": _inline_hashes(html, "style")})

    swagger_page = get_swagger_ui_html(openapi_url=_OPENAPI_PATH, title="Dropserve")
    swagger = bytes(swagger_page.body).decode()
    swagger_headers = _security_headers(
        {
            "script-src": (_SWAGGER, *_inline_hashes(swagger, "script")),
            "style-src": (_SWAGGER, "'unsafe-inline'"),  # Swagger UI sets style attributes
            "img-src": ("'self'", "data:", _SWAGGER_ICON),
            "font-src": ("data:",),
            "connect-src": ("'self'",),
        }
    )

    @routes.get("/", summary="A page with links", response_class=HTMLResponse)
    async def playground() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @routes.get("/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(swagger, headers=swagger_headers)

    async def description() -> Response:
        return RawResponse(describe())

    methods = ["GET", "HEAD"]
    routes.routes.append(
        APIRoute(_OPENAPI_PATH, description, methods=methods, include_in_schema=False)
    )
    return routes


def _security_headers(sources: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Build headers that let a page load only from `sources`, and no other page frame it."""
    policy = "; ".join(
        " ".join((directive, *allowed)) for directive, allowed in {**_DENY_ALL, **sources}.items()
    )
    return {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"}


def _inline_hashes(html: str, element: str) -> tuple[str, ...]:
    """Return the policy's sources for the inline elements of a page: the hash of each content."""
    return tuple(
        f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for text in re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    )
