"""create_app(settings): the wiring, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from service import API_VERSION, errors, logs
from service.images import ImageReader
from service.metrics import Metrics
from service.middleware import Observed
from service.repository import Repository
from service.routes import (
    models,
    open_inference,
    operations,
    predictions,
    refuse_repeated_parameters,
    releases,
    tensorflow_serving,
)
from service.settings import ServiceSettings

_DESCRIPTION = (
    "Image classification with answers that say how sure they are. "
    'Every error is `{"error": "a sentence", "code": "a word"}`.'
)


def create_app(settings: ServiceSettings, repository: Repository | None = None) -> FastAPI:
    """Wire the application; bundles are loaded once it runs, while it already answers.

    repository: another than the one over `settings.models_folder`, for tests.
    """
    repository = repository or Repository(settings, Metrics())
    metrics = repository.metrics
    reader = ImageReader(settings, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(repository.run())
        yield
        repository.stop()
        await running
        await repository.close()
        metrics.close()

    app = FastAPI(
        title="Dropserve",
        version=API_VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(refuse_repeated_parameters)],
        redirect_slashes=False,
        redoc_url=None,
    )
    app.add_middleware(
        Observed, metrics=metrics, max_concurrent_requests=settings.max_concurrent_requests
    )
    errors.add_handlers(app)
    app.include_router(predictions.router(settings, repository, reader, metrics))
    app.include_router(models.router(repository))
    app.include_router(releases.router(settings, repository))
    app.include_router(operations.router(repository, metrics))
    app.router.routes += open_inference.routes(settings, repository, reader, metrics)
    app.router.routes += tensorflow_serving.routes(settings, repository, reader)
    # Routes are asked in turn, and FastAPI's own take long to say no.
    app.router.routes.sort(key=lambda route: not getattr(route, "path", "").endswith("/infer"))
    return app


def create_worker_app() -> FastAPI:
    """Build the application of one of several workers, from the environment they share."""
    settings = ServiceSettings()
    logs.configure(settings.log_level, settings.log_format)
    return create_app(settings)
