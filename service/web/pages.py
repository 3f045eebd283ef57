"""The pages for browsers, / and /docs, each with what it may load and run; and /openapi.json."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from starlette.requests import Request

from service.api.routes import Answer, NamedRoute

_DESCRIPTION = "/openapi.json"
_PAGE = Path(__file__).with_name("index.html")
_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"
_SWAGGER_ICON = "https://fastapi.tiangolo.com/img/"
_NOTHING = {
    "default-src": ("'none'",),
    "base-uri": ("'none'",),
    "form-action": ("'none'",),
    "frame-ancestors": ("'none'",),
}


def description_route(describe: Callable[[], bytes]) -> NamedRoute:
    """Build the route of the OpenAPI description; `describe` gives it, JSON."""

    async def description(_request: Request) -> Response:
        return Answer(describe())

    return NamedRoute(_DESCRIPTION, description, methods=["GET"], include_in_schema=False)


def router() -> APIRouter:
    """Build the routes of both pages."""
    routes = APIRouter(tags=["operations"])
    html = _PAGE.read_text(encoding="utf-8")
    headers = _headers({"style-src": _inline(html, "style")})

    shown = get_swagger_ui_html(openapi_url=_DESCRIPTION, title="Dropserve")
    swagger = bytes(shown.body).decode()
    swagger_headers = _headers(
        {
            "script-src": (_SWAGGER, *_inline(swagger, "script")),
            "style-src": (_SWAGGER, "'unsafe-inline'"),  # it sets styles of its elements
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

    return routes


def _headers(sources: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Let a page load these, each kind from its sources, and nothing else; let none frame it."""
    policy = "; ".join(
        " ".join((kind, *allowed)) for kind, allowed in {**_NOTHING, **sources}.items()
    )
    return {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"}


def _inline(html: str, element: str) -> tuple[str, ...]:
    """Name what stands between the tags of a page by its digest, as the policy wants it."""
    return tuple(
        f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for text in re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    )
