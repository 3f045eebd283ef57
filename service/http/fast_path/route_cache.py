"""Remembers which route the application's router chooses for a method and a path.

It asks the same route objects, in the same order, as the router does, so both always agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service.http.fast_path.fast_path_route import FastPathRoute

_MAX_PATHS, _MAX_PATH_LENGTH = 1_000, 200  # clients can invent any number of model names


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """The route of a method and a path, and the parameters in that path."""

    route: FastPathRoute
    path: str
    parameters: Mapping[str, str]

    def write_to(self, scope: Scope) -> None:
        """Write into an ASGI scope what the router would write."""
        scope["path"] = self.path
        scope["path_params"] = self.parameters
        scope["route"] = self.route


class RouteCache:
    """Finds the routes that the fast path may answer: those of class `FastPathRoute`."""

    def __init__(self, routes: Sequence[BaseRoute], route_path: Callable[[str], str]) -> None:
        """Remember nothing yet. route_path: returns a requested path as the routes have it."""
        self._routes = routes
        self._route_path = route_path
        self._methods = {
            method
            for route in routes
            if isinstance(route, FastPathRoute)
            for method in route.methods or ()
        }
        self._matches: dict[tuple[str, str], RouteMatch | None] = {}

    def find(self, method: str, path: str) -> RouteMatch | None:
        """Return the match of a request; None where its route is not for the fast path."""
        if method not in self._methods:
            return None
        key = method, path
        if key in self._matches:
            return self._matches[key]
        match = self._ask_router(method, self._route_path(path))
        if len(path) <= _MAX_PATH_LENGTH:
            if len(self._matches) >= _MAX_PATHS:
                self._matches.clear()
            self._matches[key] = match
        return match

    def _ask_router(self, method: str, path: str) -> RouteMatch | None:
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path}
        for route in self._routes:
            match, child_scope = route.matches(scope)
            if match is Match.FULL:
                if isinstance(route, FastPathRoute):
                    return RouteMatch(route, path, child_scope["path_params"])
                return None
        return None
