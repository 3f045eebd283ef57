"""create_app(settings): the wiring, and nothing else."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service import API_VERSION
from service.api import models, open_inference, openapi, operations, tensorflow_serving
from service.api import rollouts as releases
from service.api.predict import Predictions
from service.api.routes import refuse_repeated_parameters
from service.http import responses as error_responses
from service.http.clients import Clients, Limits
from service.http.fast_path.route_cache import RouteCache
from service.http.middleware import RequestMiddleware
from service.observability import logs
from service.observability.metrics import Metrics
from service.registry.repository import Repository
from service.sandbox.image_reader import ImageReader
from service.settings import ServiceSettings
from service.web import pages

_LOAD_SECONDS = 10.0
"""How long one of several workers takes no connections while it loads its models."""
_COLLECT_AFTER = 5_000  # more containers made than dropped; a request leaves none behind
_DESCRIPTION = (
    "Image classification with answers that say how sure they are. "
    'Every error is `{"error": "a sentence", "code": "a word"}`.'
)


class Application(FastAPI):
    """FastAPI, with an entrance before everything that it does for each request itself."""

    def __init__(self, **described: Any) -> None:
        super().__init__(**described)
        self.entrance: ASGIApp = super().__call__
        self.settings: ServiceSettings
        self.clients: Clients
        """Both are what the HTTP protocol asks of its application."""
        self.complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
        """Completes the description that FastAPI makes of its own routes."""

        self._openapi_json: bytes | None = None

    def openapi(self) -> dict[str, Any]:
        """Describe every route, once."""
        if self.openapi_schema is None:
            self.openapi_schema = self.complete(super().openapi())
        return self.openapi_schema

    def openapi_json(self) -> bytes:
        """Return the same as JSON, made once: it is long, and anybody may ask for it."""
        if self._openapi_json is None:
            self._openapi_json = orjson.dumps(self.openapi())
        return self._openapi_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.entrance(scope, receive, send)


def create_app(settings: ServiceSettings, repository: Repository | None = None) -> Application:
    """Wire the application; bundles are loaded once it runs, while it already answers.

    repository: another than the one over `settings.models_folder`, for tests.
    """
    repository = repository or Repository(settings, Metrics())
    metrics = repository.metrics
    reader = ImageReader(settings, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(repository.run())
        counting = asyncio.create_task(metrics.keep_handing_over())
        # Apart, since it takes a twentieth of a second; afterwards it is remembered.
        describing = asyncio.create_task(asyncio.to_thread(app.openapi_json))
        reader.start_soon()
        try:
            if settings.workers > 1:  # until then, others answer what this worker cannot yet
                await repository.wait_until_loaded(_LOAD_SECONDS)
            yield
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
        dependencies=[Depends(refuse_repeated_parameters)],
        redirect_slashes=False,
        docs_url=None,  # it is one of our pages
        redoc_url=None,
        openapi_url=None,
    )
    error_responses.add_handlers(app)
    predictions = Predictions(settings, repository, reader, metrics)
    app.include_router(predictions.router())
    app.include_router(models.router(repository))
    app.include_router(releases.router(settings, repository))
    app.include_router(operations.router(repository, metrics))
    app.include_router(pages.router())
    app.router.routes.append(pages.description_route(app.openapi_json))
    protocol = open_inference.routes(settings, repository, reader, metrics)
    row_form = tensorflow_serving.routes(settings, repository, reader)
    app.router.routes += [*protocol, *row_form]
    app.complete = lambda found: openapi.describe(found, [*protocol, *row_form], settings)
    express = [each for each in protocol if each.path.endswith("/infer")]
    express += predictions.express()
    app.settings = settings
    app.clients = Clients(
        Limits(
            connections=settings.max_connections,
            buffered_bytes=settings.max_buffered_bytes,
            requests=settings.max_concurrent_requests,
        )
    )
    app.entrance = RequestMiddleware(app.entrance, RouteCache(express), metrics, app.clients)
    return app


def create_worker_app() -> FastAPI:
    """Build the application of one of several workers, from the environment they share."""
    settings = ServiceSettings()
    logs.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    tune_gc()
    return app


def tune_gc() -> None:
    """Let garbage collection pass over all that is loaded by now, and come less often.

    A full collection would else hold up every request for a twentieth of a second now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
