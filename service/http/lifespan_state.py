"""What the HTTP protocol needs of the application that it serves.

The application puts it into its lifespan state (ASGI 3, "Lifespan state") under `HTTP_CONTEXT`;
uvicorn hands that state to the protocol of every connection. So the application needs a server that
runs its lifespan and supports that state, as `python -m service` does.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.edge.trusted_proxies import ReverseProxies
from service.http.client_quotas import Clients
from service.http.drain_state import DrainState
from service.http.fast_path.fast_path_route import Endpoint
from service.http.fast_path.route_cache import RouteCache
from service.tls.server_certificate import ServerCertificate

HTTP_CONTEXT = "dropserve.http"
"""The key of the lifespan state."""


class RequestHandler(Protocol):
    """Does around an endpoint what `service.http.middleware` does around the ASGI application."""

    def inspect(self, scope: Scope) -> object:
        """Write into a scope what is decided by the head alone; requests may share it."""
        ...

    def respond(self, endpoint: Endpoint, request: Request) -> Coroutine[Any, Any, Response]:
        """Return the response, also where the endpoint fails or the service is overloaded."""
        ...

    def refuse(self, scope: Scope, response: Response) -> Response:
        """Return the response to a request that reaches no application; it is recorded."""
        ...

    def record(self, scope: Scope, status: int) -> None:
        """Count and log a request whose response is sent."""
        ...


@dataclass(frozen=True, slots=True)
class HttpContext:
    """The limits that connections share, and how requests are answered on the fast path."""

    clients: Clients
    head_timeout_seconds: float
    write_timeout_seconds: float
    handler: RequestHandler
    routes: RouteCache
    proxies: ReverseProxies
    drain: DrainState
    certificate: ServerCertificate | None = None
    """None: the public listener takes plain HTTP."""
