"""Builds the application from the settings: it creates the parts and connects them, no more."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service import API_VERSION
from service.api import (
    drift,
    health_and_metrics,
    model_list,
    open_inference,
    openapi,
    predict,
    rollouts,
    tensorflow_serving,
)
from service.http import error_responses
from service.http.client_quotas import Clients, ResourceLimits
from service.http.fast_path.route_cache import RouteCache
from service.http.http_dependencies import HTTP_CONTEXT, HttpContext
from service.http.middleware import RequestMiddleware
from service.observability import log_format
from service.observability.metrics_recorder import Metrics
from service.registry.model_repository import Repository
from service.sandbox.request_image_reader import ImageReader
from service.settings import ServiceSettings
from service.web import pages

_LOAD_SECONDS = 10.0
"""How long one of several workers waits for its models before it accepts connections."""
_COLLECT_AFTER = 5_000  # allocated minus freed containers; a request leaves none behind
_DESCRIPTION = (
    "Image classification with answers that say how sure they are. "
    'Every error is `{"error": "a sentence", "code": "a word"}`.'
)


class Application(FastAPI):
    """FastAPI with a complete OpenAPI description, which is built once."""

    def __init__(self, **described: Any) -> None:
        super().__init__(**described)
        self.complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda description: description
        """Adds to FastAPI's description what it cannot know: the routes of /v1 and /v2, errors."""
        self._openapi_json: bytes | None = None

    def openapi(self) -> dict[str, Any]:
        """Return the description of every route."""
        if self.openapi_schema is None:
            self.openapi_schema = self.complete(super().openapi())
        return self.openapi_schema

    def openapi_json(self) -> bytes:
        """Return the description as JSON; it is long, so it is serialised once."""
        if self._openapi_json is None:
            self._openapi_json = orjson.dumps(self.openapi())
        return self._openapi_json


def create_app(settings: ServiceSettings, repository: Repository | None = None) -> Application:
    """Build the application; it loads the bundles after its start, while it already answers.

    repository: replaces the repository of `settings.models_folder`, for tests.
    """
    repository = repository or Repository(settings, Metrics())
    metrics = repository.metrics
    reader = ImageReader(settings, metrics)
    clients = Clients(
        ResourceLimits(
            connections=settings.max_connections,
            buffered_bytes=settings.max_buffered_bytes,
            requests=settings.max_concurrent_requests,
        )
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        running = asyncio.create_task(repository.run())
        counting = asyncio.create_task(metrics.flush_periodically())
        # On a thread, since it takes 50 ms; the result is kept.
        describing = asyncio.create_task(asyncio.to_thread(app.openapi_json))
        reader.start_soon()
        try:
            if settings.workers > 1:  # meanwhile the other workers answer
                await repository.wait_until_loaded(_LOAD_SECONDS)
            yield {HTTP_CONTEXT: context}
        finally:
            counting.cancel()
            repository.stop()
            try:
                await reader.close()
                await describing
                await running
                await repository.close()
            finally:
                metrics.close()

    app = Application(
        title="Dropserve",
        version=API_VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # `web.pages` serves it
        redoc_url=None,
        openapi_url=None,
    )
    error_responses.add_handlers(app)
    requests = RequestMiddleware(metrics, clients)
    app.add_middleware(requests.around)
    protocol_routers = (
        open_inference.router(settings, repository, reader, metrics),
        tensorflow_serving.router(settings, repository, reader),
    )
    protocols = [
        route
        for router in protocol_routers
        for route in router.routes
        if isinstance(route, APIRoute)
    ]
    app.router.routes += [
        *predict.router(settings, repository, reader, metrics).routes,
        *model_list.router(repository).routes,
        *rollouts.router(settings, repository).routes,
        *drift.router(settings, repository).routes,
        *health_and_metrics.router(repository, metrics).routes,
        *pages.router(app.openapi_json).routes,
        *protocols,
    ]
    app.complete = partial(openapi.complete_description, routes=protocols, settings=settings)
    context = HttpContext(
        clients=clients,
        head_timeout_seconds=settings.head_timeout_seconds,
        write_timeout_seconds=settings.write_timeout_seconds,
        handler=requests,
        routes=RouteCache(app.router.routes),
    )
    return app


def create_worker_app() -> FastAPI:
    """Build the application of one worker process from the environment that all workers share."""
    settings = ServiceSettings()
    log_format.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    tune_gc()
    return app


def tune_gc() -> None:
    """Exempt everything loaded so far from garbage collection, and collect less often.

    Otherwise a full collection would delay every request by 50 ms now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
