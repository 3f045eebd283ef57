"""POST /models/{name}/…: change which version of a model serves."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response

from service.api import schemas
from service.api.model_list import model_summary
from service.api.routes import json_response, new_router, require_control
from service.registry.model_repository import Repository, RolloutChange
from service.settings import ServiceSettings

Handler = TypeVar("Handler", bound=Callable[..., Any])
NoQuery = Annotated[schemas.NoQuery, Query()]


def router(settings: ServiceSettings, repository: Repository) -> APIRouter:
    """Build the six routes."""
    errors = schemas.error_responses(400, 403, 404, 409, 500, 503, 504)
    routes = new_router("models", "/models/{name}", errors)

    def action(path: str, title: str) -> Callable[[Handler], Handler]:
        return routes.post(path, summary=title, response_model=schemas.ModelSummary)

    async def change_rollout(request: Request, name: str, change: RolloutChange) -> Response:
        require_control(request, settings)
        return json_response(model_summary(await repository.change_rollout(name, change)))

    @action("/canary", "Give a version a share of a model's requests")
    async def canary(
        request: Request, name: str, query: Annotated[schemas.CanaryQuery, Query()]
    ) -> Response:
        return await change_rollout(
            request,
            name,
            lambda now, stable, _: now.with_canary(stable, query.version, query.share),
        )

    @action("/promote", "Make the canary the stable version")
    async def promote(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, stable, _: now.promoted(stable))

    @action("/rollback", "End the canary or, without one, return to the version before")
    async def rollback(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, _, lower: now.rolled_back(lower))

    @action("/pin", "Serve one version, even when a newer one appears")
    async def pin(
        request: Request, name: str, query: Annotated[schemas.PinQuery, Query()]
    ) -> Response:
        return await change_rollout(request, name, lambda now, *_: now.pinned(query.version))

    @action("/follow", "Serve the newest good version again")
    async def follow(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, *_: now.unpinned())

    @action("/default", "Let a model answer the requests that name none")
    async def default(request: Request, name: str, query: NoQuery) -> Response:
        require_control(request, settings)
        return json_response(model_summary(await repository.make_default(name)))

    return routes
