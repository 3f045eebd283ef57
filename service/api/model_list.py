"""GET /models and GET /models/{name}: the loaded models, and one model's manifest and card."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api import schemas
from service.api.routes import json_response, new_router, request_id
from service.registry.model_repository import Repository
from service.registry.stable_and_canary import ActiveVersions


def router(repository: Repository) -> APIRouter:
    """Build both routes."""
    routes = new_router("models")

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
                "models": [model_summary(each) for each in repository.active_versions],
                "refused": [
                    {"name": each.name, "version": str(each.version), "reason": each.reason}
                    for each in repository.load_failures
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
        model = repository.get(name, query.version, request_id(request))
        manifest = model.bundle.manifest.model_dump(mode="json")
        return json_response({"manifest": manifest, "card": model.card})

    return routes


def model_summary(versions: ActiveVersions) -> dict[str, object]:
    """Build the `schemas.ModelSummary` of a model's active versions."""
    model, rollout = versions.stable, versions.rollout
    manifest = model.bundle.manifest
    return {
        "name": manifest.name,
        "version": model.version,
        "class_names": list(manifest.class_names),
        "input": manifest.input.model_dump(),
        "parameters": manifest.parameters,
        "precision": manifest.precision,
        "dropout_layers": [layer.model_dump() for layer in manifest.dropout_layers],
        "test_accuracy": manifest.metrics.get("test", {}).get("accuracy"),
        "held": rollout.held is not None,
        "canary": None if versions.canary is None else versions.canary.version,
        "canary_share": 0.0 if versions.canary is None else rollout.share,
    }
