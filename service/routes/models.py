"""GET /models, GET /models/{name}, and POST /models/{name}/… to change which version serves."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import schemas
from service.repository import Offer, Repository, Step
from service.routes import json_response, request_id, require_control
from service.settings import ServiceSettings

_CONTROL_ERRORS = schemas.error_responses(400, 403, 404, 409, 500, 503)


def router(settings: ServiceSettings, repository: Repository) -> APIRouter:
    """Build the routes."""
    routes = APIRouter(tags=["models"])

    @routes.get(
        "/models",
        summary="What is loaded",
        response_model=schemas.Models,
        responses=schemas.error_responses(400, 500),
    )
    async def models(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        return json_response(
            {
                "default": repository.default,
                "models": [_summary(offer) for offer in repository.offers],
                "refused": [
                    {"name": each.name, "version": str(each.version), "reason": each.reason}
                    for each in repository.refusals
                ],
            }
        )

    @routes.get(
        "/models/{name}",
        summary="One model's manifest and card",
        response_model=schemas.ModelCard,
        responses=schemas.error_responses(400, 404, 500, 503),
    )
    async def model(
        request: Request, name: str, query: Annotated[schemas.VersionQuery, Query()]
    ) -> Response:
        served = repository.get(name, query.version, request_id(request))
        manifest = served.bundle.manifest.model_dump(mode="json")
        return json_response({"manifest": manifest, "card": served.card})

    @routes.post(
        "/models/{name}/canary",
        summary="Give a version a share of a model's requests",
        response_model=schemas.ModelSummary,
        responses=_CONTROL_ERRORS,
    )
    async def canary(
        request: Request, name: str, query: Annotated[schemas.CanaryQuery, Query()]
    ) -> Response:
        return await changed(
            request, name, lambda now, stable, _: now.tried(stable, query.version, query.share)
        )

    @routes.post(
        "/models/{name}/promote",
        summary="Make the canary the stable version",
        response_model=schemas.ModelSummary,
        responses=_CONTROL_ERRORS,
    )
    async def promote(
        request: Request, name: str, query: Annotated[schemas.NoQuery, Query()]
    ) -> Response:
        return await changed(request, name, lambda now, stable, _: now.promoted(stable))

    @routes.post(
        "/models/{name}/rollback",
        summary="End the canary or, without one, return to the version before",
        response_model=schemas.ModelSummary,
        responses=_CONTROL_ERRORS,
    )
    async def rollback(
        request: Request, name: str, query: Annotated[schemas.NoQuery, Query()]
    ) -> Response:
        return await changed(request, name, lambda now, _, lower: now.rolled_back(lower))

    @routes.post(
        "/models/{name}/pin",
        summary="Hold one version, whatever else appears",
        response_model=schemas.ModelSummary,
        responses=_CONTROL_ERRORS,
    )
    async def pin(
        request: Request, name: str, query: Annotated[schemas.PinQuery, Query()]
    ) -> Response:
        return await changed(request, name, lambda now, *_: now.pinned(query.version))

    @routes.post(
        "/models/{name}/follow",
        summary="Serve the newest good version again",
        response_model=schemas.ModelSummary,
        responses=_CONTROL_ERRORS,
    )
    async def follow(
        request: Request, name: str, query: Annotated[schemas.NoQuery, Query()]
    ) -> Response:
        return await changed(request, name, lambda now, *_: now.followed())

    async def changed(request: Request, name: str, step: Step) -> Response:
        require_control(request, settings)
        return json_response(_summary(await repository.release(name, step)))

    return routes


def _summary(offer: Offer) -> dict[str, object]:
    served, release = offer.stable, offer.release
    manifest = served.bundle.manifest
    return {
        "name": manifest.name,
        "version": served.version,
        "class_names": list(manifest.class_names),
        "input": manifest.input.model_dump(),
        "parameters": manifest.parameters,
        "dropout_layers": [layer.model_dump() for layer in manifest.dropout_layers],
        "test_accuracy": manifest.metrics.get("test", {}).get("accuracy"),
        "held": release.held is not None,
        "canary": None if offer.canary is None else offer.canary.version,
        "canary_share": 0.0 if offer.canary is None else release.share,
    }
