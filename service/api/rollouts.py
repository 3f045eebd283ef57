"""POST /models/{name}/…: change which version of a model serves."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Query, Request, Response

from service.api import schemas
from service.api.model_list import model_summary
from service.api.routes import json_response, new_router, require_control
from service.keys.scopes import requires
from service.registry.model_repository import Repository, RolloutChange
from service.settings import ServiceSettings
from service.shadow.background_comparison import ShadowComparison

Handler = TypeVar("Handler", bound=Callable[..., Any])
NoQuery = Annotated[schemas.NoQuery, Query()]


class _Action(Protocol):
    """Adds a route of a path and a title."""

    def __call__(self, path: str, title: str) -> Callable[[Handler], Handler]: ...


def router(
    settings: ServiceSettings, repository: Repository, shadows: ShadowComparison
) -> APIRouter:
    """Build the eight routes."""
    errors = schemas.error_responses(400, 403, 404, 409, 500, 503, 504)
    routes = new_router("models", "/models/{name}", errors)

    def action(path: str, title: str) -> Callable[[Handler], Handler]:
        return routes.post(path, summary=title, response_model=schemas.ModelSummary)

    async def change_rollout(request: Request, name: str, change: RolloutChange) -> Response:
        require_control(request, settings)
        active = await repository.change_rollout(name, change)
        return json_response(await model_summary(active, repository, shadows))

    @action("/canary", "Give a version a share of a model's requests")
    @requires("control")
    async def canary(
        request: Request, name: str, query: Annotated[schemas.CanaryQuery, Query()]
    ) -> Response:
        return await change_rollout(
            request,
            name,
            lambda now, stable, _: now.with_canary(stable, query.version, query.share),
        )

    @action("/promote", "Make the canary the stable version")
    @requires("control")
    async def promote(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, stable, _: now.promoted(stable))

    @action("/rollback", "End the canary or, without one, return to the version before")
    @requires("control")
    async def rollback(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, _, lower: now.rolled_back(lower))

    @action("/pin", "Serve one version, even when a newer one appears")
    @requires("control")
    async def pin(
        request: Request, name: str, query: Annotated[schemas.PinQuery, Query()]
    ) -> Response:
        return await change_rollout(request, name, lambda now, *_: now.pinned(query.version))

    @action("/follow", "Serve the newest good version again")
    @requires("control")
    async def follow(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, *_: now.unpinned())

    @action("/default", "Let a model answer the requests that name none")
    @requires("control")
    async def default(request: Request, name: str, query: NoQuery) -> Response:
        require_control(request, settings)
        active = await repository.make_default(name)
        return json_response(await model_summary(active, repository, shadows))

    _add_shadow_routes(action, change_rollout)
    return routes


def _add_shadow_routes(
    action: _Action,
    change_rollout: Callable[[Request, str, RolloutChange], Awaitable[Response]],
) -> None:
    """Add the routes that begin and end the comparison with a shadow."""

    @action("/shadow", "Compare a version with the stable one, out of the way")
    @requires("control")
    async def shadow(
        request: Request, name: str, query: Annotated[schemas.ShadowQuery, Query()]
    ) -> Response:
        return await change_rollout(
            request,
            name,
            lambda now, stable, _: now.with_shadow(stable, query.version, query.share),
        )

    @action("/unshadow", "End the comparison with a shadow version")
    @requires("control")
    async def unshadow(request: Request, name: str, query: NoQuery) -> Response:
        return await change_rollout(request, name, lambda now, *_: now.without_shadow())
