"""GET /models and GET /models/{name}."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api import schemas
from service.api.routes import json_response, request_id
from service.registry.repository import ActiveVersions, Repository


def router(repository: Repository) -> APIRouter:
    """Build both routes."""
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
                "models": [summary(offer) for offer in repository.offers],
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

    return routes


def summary(offer: ActiveVersions) -> dict[str, object]:
    """Describe what of a model is in service, as `schemas.ModelSummary`."""
    served, release = offer.stable, offer.release
    manifest = served.bundle.manifest
    return {
        "name": manifest.name,
        "version": served.version,
        "class_names": list(manifest.class_names),
        "input": manifest.input.model_dump(),
        "parameters": manifest.parameters,
        "precision": manifest.precision,
        "dropout_layers": [layer.model_dump() for layer in manifest.dropout_layers],
        "test_accuracy": manifest.metrics.get("test", {}).get("accuracy"),
        "held": release.held is not None,
        "canary": None if offer.canary is None else offer.canary.version,
        "canary_share": 0.0 if offer.canary is None else release.share,
    }
