"""/v1/…: TensorFlow Serving's REST API in row format, which KServe's V1 clients use, too."""

from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from service.api.open_inference_tensors import ModelEndpoint, split_model_name
from service.api.record_answer_for_log_shadow_feedback import ROWS, AnswerNotes
from service.api.routes import json_response, predictions_response, request_id
from service.codecs.tensors import Tensor
from service.keys.scopes import requires
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings


class _StatusRoute(APIRoute):
    """The route of a model or version, whose names have no colon: behind one stands a verb."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if ":" in scope["path"].rpartition("/")[2]:
            return Match.NONE, {}
        return super().matches(scope)


def router(
    settings: ServiceSettings,
    repository: Repository,
    reader: ImageReader,
    notes: AnswerNotes,
) -> APIRouter:
    """Build the routes of the models' names, of a model's status and of its predictions."""

    def resolve(request: Request) -> ModelEndpoint:
        name, dropout_active = split_model_name(request.path_params["name"], settings)
        version = request.path_params.get("version")
        return ModelEndpoint(repository.get(name, version, request_id(request)), dropout_active)

    @requires("read")
    async def names(_request: Request) -> Response:
        return json_response({"models": [each.stable.name for each in repository.active_versions]})

    @requires("read")
    async def status(request: Request) -> Response:
        endpoint = resolve(request)
        versions = repository.versions(endpoint.model)
        if "version" in request.path_params:
            versions = [endpoint.model]
        return json_response(
            {
                "name": endpoint.name,
                "ready": True,
                "model_version_status": [
                    {
                        "version": each.version,
                        "state": "AVAILABLE",
                        "status": {"error_code": "OK", "error_message": ""},
                    }
                    for each in versions
                ],
            }
        )

    @requires("predict")
    async def predict(request: Request) -> Response:
        endpoint = resolve(request)
        with endpoint.model, endpoint.statistics.time_request() as timing:
            images = await reader.read_rows(request, endpoint.spec)
            timing.mark_input_read(len(images))
            options = endpoint.options({}, settings)
            outputs = await endpoint.infer(images, options, None)
            timing.mark_predicted()
            if notes.wanted(endpoint.model):
                notes.note_outputs(ROWS, endpoint, images, options, outputs)
            return await predictions_response(
                {}, lambda: _rows(outputs), sum(tensor.values.size for tensor in outputs)
            )

    routes = APIRouter(prefix="/v1", include_in_schema=False)  # `openapi` describes them
    routes.add_api_route("/models", names, methods=["GET", "HEAD"])
    for model in ("/models/{name}", "/models/{name}/versions/{version}"):
        routes.add_api_route(f"{model}:predict", predict, methods=["POST"])
        routes.add_api_route(
            model, status, methods=["GET", "HEAD"], route_class_override=_StatusRoute
        )
    return routes


def _rows(outputs: list[Tensor]) -> list[dict[str, Any]]:
    """Return the outputs of each image by name (TensorFlow Serving's row format)."""
    columns = {
        tensor.name: [each.decode() for each in tensor.values]
        if tensor.datatype == "BYTES"
        else list(tensor.values)
        for tensor in outputs
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
