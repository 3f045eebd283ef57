"""GET /models and GET /models/{name}: the loaded models, and one model's manifest and card."""

import re
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api import schemas
from service.api.routes import json_response, new_router
from service.api.shadow_summary import shadow_summary
from service.api.version_summary import measured, version_summary
from service.keys.scopes import requires
from service.registry.active_versions import ActiveVersions
from service.registry.model_repository import Repository
from service.shadow.background_comparison import ShadowComparison


def router(repository: Repository, shadows: ShadowComparison) -> APIRouter:
    """Build both routes."""
    routes = new_router("models")

    @routes.get(
        "/models",
        summary="What is loaded",
        response_model=schemas.Models,
        responses=schemas.error_responses(400, 500),
    )
    @requires("read")
    async def models(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        return json_response(
            {
                "default": repository.default,
                "models": [
                    await model_summary(each, repository, shadows)
                    for each in repository.active_versions
                ],
                "refused": describe_failures(repository),
                "unloaded": list(repository.unloaded_models),
            }
        )

    @routes.get(
        "/models/{name}",
        summary="One model's manifest and card",
        response_model=schemas.ModelCard,
        responses=schemas.error_responses(400, 404, 500, 503),
    )
    @requires("read")
    async def model(name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
        model = repository.get(name, query.version)
        manifest = model.bundle.manifest.model_dump(mode="json")
        manifest["training"] = without_folders(manifest["training"])
        return json_response({"manifest": manifest, "card": model.card})

    return routes


def without_folders(options: Mapping[str, object]) -> dict[str, object]:
    """Return training options in which a path has only its last part.

    The folders of the machine that trained the model are nothing for its clients:
    `folder:/home/ada/pets` becomes `folder:pets`.
    """
    return {
        name: _FOLDERS.sub("", value.rstrip("/")) if isinstance(value, str) else value
        for name, value in options.items()
    }


_FOLDERS = re.compile(r"(?<=^folder:).*/|^(?!folder:).*/", re.DOTALL)


def describe_failures(repository: Repository) -> list[dict[str, str]]:
    """Build a `schemas.RefusedVersion` for each version that could not be loaded."""
    return [
        {"name": each.name, "version": str(each.version), "reason": each.reason}
        for each in repository.load_failures
    ]


async def model_summary(
    versions: ActiveVersions, repository: Repository, shadows: ShadowComparison
) -> dict[str, object]:
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
        "test_accuracy": measured(manifest.metrics, "test", "accuracy"),
        "held": rollout.held is not None,
        "canary": None if versions.canary is None else versions.canary.version,
        "canary_share": versions.canary_share,
        "shadow": await shadow_summary(versions, repository, shadows),
        "versions": [version_summary(each, versions) for each in versions.all],
    }
