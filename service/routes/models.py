"""GET /models and GET /models/{name}."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service import schemas
from service.repository import Repository, Served
from service.routes import json_response


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
                "models": [_summary(served) for served in repository.served],
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
    async def model(name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
        bundle = repository.get(name, query.version).bundle
        return json_response(
            {"manifest": bundle.manifest.model_dump(mode="json"), "card": bundle.card}
        )

    return routes


def _summary(served: Served) -> dict[str, object]:
    manifest = served.bundle.manifest
    return {
        "name": manifest.name,
        "version": served.version,
        "class_names": list(manifest.class_names),
        "input": manifest.input.model_dump(),
        "parameters": manifest.parameters,
        "dropout_layers": [layer.model_dump() for layer in manifest.dropout_layers],
        "test_accuracy": manifest.metrics.get("test", {}).get("accuracy"),
    }
