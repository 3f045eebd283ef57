"""A FastAPI route whose endpoint the fast path may call. Knows no endpoint's meaning."""

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, get_args

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


class FastPathRoute(APIRoute):
    """Calls its endpoint directly, without FastAPI's dependencies, where a request has no query.

    The endpoint is `async (request) -> Response`, or takes also `query`, an annotated pydantic
    model of the query parameters, each of which has a default. FastAPI documents the route as any
    other. It may await anything, but has no current task until its second wait (see
    `CoroutineRunner`): before that, `asyncio.timeout` and task groups raise RuntimeError, which is
    answered 500.
    """

    fast_endpoint: Endpoint
    """The endpoint of a request without query parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what the router calls."""
        through_fastapi = super().get_route_handler()
        self.fast_endpoint = fast_endpoint = _with_default_query(self.endpoint)
        ignores_query = fast_endpoint is self.endpoint

        async def handle(request: Request) -> Response:
            if ignores_query or not request.scope["query_string"]:
                return await fast_endpoint(request)
            return await through_fastapi(request)

        return handle


def _with_default_query(endpoint: Callable[..., Awaitable[Response]]) -> Endpoint:
    query = inspect.signature(endpoint, eval_str=True).parameters.get("query")
    if query is None:
        return endpoint
    model, *_ = get_args(query.annotation)
    return partial(endpoint, query=model())
