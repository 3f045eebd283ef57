"""POST /occlusion: which parts of an image the answer hangs on (Zeiler & Fergus 2014)."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.images.image_region_that_is_seen import WHOLE_IMAGE, visible_region
from model.images.occlusion import OcclusionGrid, mean_colour
from model.images.preprocessing import InputSpec
from service.api import schemas
from service.api.routes import image_request_body, json_response, new_router, request_id
from service.engine.occlusion_runs import predict_occluded, require_affordable
from service.errors import InvalidQueryError
from service.http.client_rate_limits import charge_images
from service.keys.scopes import requires
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings


def router(settings: ServiceSettings, repository: Repository, reader: ImageReader) -> APIRouter:
    """Build the route."""
    routes = new_router("predictions")

    @routes.post(
        "/occlusion",
        summary="Say which parts of an image the answer hangs on",
        response_model=schemas.OcclusionMap,
        responses=schemas.error_responses(400, 404, 408, 413, 415, 500, 503, 504),
        openapi_extra=image_request_body("OneInstance", max_files=1),
    )
    @requires("predict")
    async def occlusion(
        request: Request, query: Annotated[schemas.OcclusionQuery, Query()]
    ) -> Response:
        """Cover each part of one image in turn, and return the label's probability without it."""
        model = repository.get(query.model, query.version, request_id(request))
        manifest = model.bundle.manifest
        grid = _grid(query, manifest.input)
        label = _class_index(query.label, manifest.class_names)
        require_affordable(model.batcher, grid, settings.inference_timeout_seconds)
        with model, model.batcher.statistics.time_request() as timing:
            charge_images(request.scope, 1 + len(grid))
            images, size = await reader.read_one(request, manifest.input)
            timing.mark_input_read(1 + len(grid))
            probabilities = await predict_occluded(
                model.batcher, images[0], grid, settings.inference_timeout_seconds
            )
            timing.mark_predicted()
        if label is None:
            label = int(probabilities[0].argmax())
        confidence, *covered = probabilities[:, label].tolist()
        by_cell = np.reshape(covered, (grid.rows, grid.columns))
        region = WHOLE_IMAGE if size is None else visible_region(*size, manifest.input)
        return json_response(
            {
                "model": manifest.name,
                "version": model.version,
                "label": manifest.class_names[label],
                "confidence": confidence,
                "grid": [grid.rows, grid.columns],
                "stride": [grid.height / grid.rows, grid.width / grid.columns],
                "patch": [grid.patch, grid.patch],
                "fill": mean_colour(images[0]),
                "region": region._asdict(),
                "probabilities": by_cell,
                "importance": confidence - by_cell,
            }
        )

    return routes


def _grid(query: schemas.OcclusionQuery, spec: InputSpec) -> OcclusionGrid:
    longer = max(spec.height, spec.width)
    for name in ("grid", "patch"):
        value = getattr(query, name)
        if value is not None and value > longer:
            raise InvalidQueryError(
                f"Parameter {name!r}: the model sees {longer} pixels along the longer side, so at "
                f"most {longer} can be used, but got {value}."
            )
    return OcclusionGrid.of(spec.height, spec.width, query.grid, query.patch)


def _class_index(label: str | None, class_names: tuple[str, ...]) -> int | None:
    if label is None:
        return None
    if label not in class_names:
        raise InvalidQueryError(
            f"Parameter 'label': the model has no class {label[:100]!r}; GET /models lists its "
            "classes."
        )
    return class_names.index(label)
