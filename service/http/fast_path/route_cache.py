"""The routes that are called all day, found without asking any other. Knows no route's meaning."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

Endpoint = Callable[[Request], Awaitable[Response]]

_MOST_PATHS, _LONG_PATH = 1_000, 200  # anybody can invent names of models


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """An endpoint that is called without what the application does for all others."""

    route: Route
    endpoint: Endpoint
    path: str
    parameters: Mapping[str, str]

    def note(self, scope: Scope) -> None:
        """Note in the scope what routing would."""
        scope["path"] = self.path
        scope["path_params"] = self.parameters
        scope["route"] = self.route


class RouteCache:
    """Those routes of an application that are express."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._known: dict[tuple[str, str], RouteMatch] = {}

    def find(self, method: str, path: str) -> RouteMatch | None:
        """Find the route of a request that has no query parameters; None: it is another."""
        asked = method, path
        if asked not in self._known:
            found = self._find(method, path)
            if found is None or len(path) > _LONG_PATH:
                return found
            if len(self._known) >= _MOST_PATHS:
                self._known.clear()
            self._known[asked] = found
        return self._known[asked]

    def _find(self, method: str, path: str) -> RouteMatch | None:
        for route in self._routes:
            match = route.path_regex.match(path)
            if match and method in (route.methods or ()):
                return RouteMatch(route, route.endpoint, path, match.groupdict())
        return None
