"""Sends a browser from /PREFIX to /PREFIX/, below which relative links lead to the service."""

from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from service.keys.scopes import public

_PERMANENT = 308


def route(root_path: str) -> APIRoute:
    """Build the route of the root path itself."""
    target = f"{root_path.rpartition('/')[2]}/"

    @public
    async def redirect() -> RedirectResponse:
        return RedirectResponse(target, _PERMANENT)

    return APIRoute(root_path, redirect, methods=["GET", "HEAD"], include_in_schema=False)
