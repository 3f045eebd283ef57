"""The routes that are called all day, asked before all others and without what those need.

Knows no route's meaning.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from model.errors import DropserveError
from service.errors import domain_error_response


class Express:
    """ASGI middleware around an application that has these routes, too.

    For other methods, and for query parameters, which are read there.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of the routes; pass on any other."""
        endpoint = None
        if scope["type"] == "http" and not scope["query_string"]:
            endpoint = self._endpoint(scope)
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except DropserveError as error:
            response = domain_error_response(error)
        await response(scope, receive, send)

    def _endpoint(self, scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
        for route in self._routes:
            found = route.path_regex.match(scope["path"])
            if found and scope["method"] in (route.methods or ()):
                scope["path_params"] = found.groupdict()
                scope["route"] = route
                return route.endpoint
        return None
