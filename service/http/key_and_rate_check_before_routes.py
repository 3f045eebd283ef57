"""Puts a check of key and rate before each route that is not public, on both paths.

The check runs once the route is known and before its body is read. Requests of the control listener
are not checked: who reaches that is trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.asgi_request import CONTROL, KEY_NAME
from service.http.client_rate_limits import ALLOWANCE, ClientRates
from service.http.fast_path.fast_path_route import Endpoint, FastPathRoute
from service.http.request_body import header
from service.http.request_head_checks import INSPECTED, InspectedHead
from service.keys import scopes
from service.keys.access_control import AccessControl
from service.observability.log_format import CURRENT_KEY_NAME


def protect(
    routes: Sequence[BaseRoute], access: AccessControl | None, rates: ClientRates | None
) -> None:
    """Let each route check key and rate of a request before it does anything else.

    access: None where the service has no keys. rates: None where clients are not limited.
    """
    for route in routes:
        assert isinstance(route, APIRoute)
        needed = scopes.required_scope(route.endpoint)
        if needed is None:
            continue
        check = _Check(access, rates, needed)
        route.app = check.before_app(route.app)
        if isinstance(route, FastPathRoute):
            route.fast_endpoint = check.before_endpoint(route.fast_endpoint)


@dataclass(frozen=True, slots=True)
class _Check:
    """The check of one route."""

    access: AccessControl | None
    rates: ClientRates | None
    needed: scopes.Scope

    def __call__(self, scope: Scope) -> None:
        """Note the name of a request's key, and charge the request to its client.

        Raises:
            ServiceError: it has no such key, or its client has sent too many.
        """
        if scope.get(CONTROL):
            return
        head: InspectedHead = scope[INSPECTED]
        client = f"address {head.network}"
        if self.access is not None:
            key = self.access.authorize(
                header(scope, b"authorization"),
                header(scope, b"x-api-key"),
                head.network,
                self.needed,
            )
            client = f"key {key.id}"
            scope[KEY_NAME] = key.name
            CURRENT_KEY_NAME.set(key.name)
        if self.rates is not None:
            scope[ALLOWANCE] = self.rates.admit(client)

    def before_app(self, app: ASGIApp) -> ASGIApp:
        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            self(scope)
            await app(scope, receive, send)

        return checked

    def before_endpoint(self, endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            self(request.scope)
            return await endpoint(request)

        return checked
