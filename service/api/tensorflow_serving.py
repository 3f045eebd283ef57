"""/v1/…: TensorFlow Serving's REST form, which KServe's V1 clients speak. No numerics."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.api.model_endpoint import ModelEndpoint, bundle_name
from service.api.routes import NamedRoute, json_response, request_id, rows_response
from service.codecs.tensors import Tensor
from service.registry.repository import Repository
from service.sandbox.image_reader import ImageReader
from service.settings import ServiceSettings


def routes(
    settings: ServiceSettings, repository: Repository, reader: ImageReader
) -> list[NamedRoute]:
    """Build the four routes."""

    def face(request: Request) -> ModelEndpoint:
        name, sampled = bundle_name(request.path_params["name"], settings)
        version = request.path_params.get("version")
        return ModelEndpoint(repository.get(name, version, request_id(request)), sampled)

    async def names(_request: Request) -> Response:
        return json_response({"models": [offer.stable.name for offer in repository.offers]})

    async def status(request: Request) -> Response:
        asked = face(request)
        versions = repository.versions(asked.served)
        if "version" in request.path_params:
            versions = [asked.served]
        return json_response(
            {
                "name": asked.name,
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

    async def predict(request: Request) -> Response:
        asked = face(request)
        with asked.served, asked.statistics.request() as timing:
            images = await reader.read_rows(request, asked.spec)
            timing.has_read(len(images))
            outputs = await asked.answer(images, asked.how({}, settings), None)
            timing.has_answered()
            return await rows_response(
                {}, lambda: _rows(outputs), sum(tensor.values.size for tensor in outputs)
            )

    found = [NamedRoute("/v1/models", names, methods=["GET"])]
    for model in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        found += [
            NamedRoute(f"{model}:predict", predict, methods=["POST"]),
            NamedRoute(model, status, methods=["GET"]),
        ]
    return found


def _rows(outputs: list[Tensor]) -> list[dict[str, Any]]:
    columns = {
        tensor.name: [each.decode() for each in tensor.values]
        if tensor.datatype == "BYTES"
        else list(tensor.values)
        for tensor in outputs
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
