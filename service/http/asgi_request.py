"""A request as the ASGI application gets it: the keys of its scope, and its response's cycle."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

CLIENT = "dropserve.client"
"""The key of a request's scope with the `Client` that sent the request."""
CONTROL = "dropserve.control"
"""The key with whether the request came by the control listener, which alone may change models."""
KEY_NAME = "dropserve.key"
"""The key with the name of the request's API key, where the route needed one."""
TARGET_HOST = "dropserve.target_host"
"""The key with the host of a request target in absolute form, such as `http://HOST/path`."""
HUNG_UP = "dropserve.hung_up"
"""The key that is set to True once the connection is lost."""
REFUSED = "dropserve.refused"
"""The key that is set to True where the protocol has answered in place of the application."""


class AsgiCycle(RequestResponseCycle):
    """One request and its response through ASGI; its transport is the `HttpProtocol`."""

    status = 0
    """The status of the response; 0 before its head is sent."""

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Send a part of the response.

        A response that begins before the request is complete closes the connection.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.more_body or self.transport.is_last_response():  # type: ignore[attr-defined]
                self.keep_alive = False
        await super().send(message)  # type: ignore[arg-type]

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]
        """Run the application; a task that is cancelled since its client hung up ends quietly."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:  # which uvicorn would log with a traceback
                if not scope.get(HUNG_UP):
                    raise

        await super().run_asgi(run)  # type: ignore[arg-type]
