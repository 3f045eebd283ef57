"""/v1/…: TensorFlow Serving's REST form, which KServe's V1 clients speak. No numerics."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.bodies import BodyReader
from service.errors import InvalidRequestError
from service.images import ImageReader, read_json
from service.inference import INPUT, Face, bundle_name
from service.repository import Repository
from service.routes import NamedRoute, json_response, request_id
from service.settings import ServiceSettings
from service.tensors import Tensor

_SIGNATURE = "serving_default"
_FIELDS = {"instances", "signature_name"}


def routes(
    settings: ServiceSettings, repository: Repository, reader: ImageReader
) -> list[NamedRoute]:
    """Build the four routes."""
    bodies = BodyReader(settings)

    def face(request: Request) -> Face:
        name, sampled = bundle_name(request.path_params["name"], settings)
        version = request.path_params.get("version")
        return Face(repository.get(name, version, request_id(request)), sampled)

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
            instances = _instances(read_json(await bodies.read(request)))
            images = await reader.from_instances(instances, asked.served.bundle.manifest.input)
            timing.has_read(len(images))
            outputs = await asked.answer(images, asked.how({}, settings), None)
            timing.has_answered()
            return json_response({"predictions": _rows(outputs)})

    found = [NamedRoute("/v1/models", names, methods=["GET"])]
    for model in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        found += [
            NamedRoute(f"{model}:predict", predict, methods=["POST"]),
            NamedRoute(model, status, methods=["GET"]),
        ]
    return found


def _instances(content: Any) -> list[Any]:
    """Return the images of a request in row form; each may stand under its input's name."""
    if not isinstance(content, dict) or not {"instances"} <= set(content) <= _FIELDS:
        raise InvalidRequestError(
            'The body is not of the form {"instances": [IMAGE, ...]}, with or without '
            f'"signature_name": "{_SIGNATURE}".'
        )
    if content.get("signature_name", _SIGNATURE) != _SIGNATURE:
        raise InvalidRequestError(f"The one signature here is {_SIGNATURE!r}; leave it out.")
    instances = content["instances"]
    if not isinstance(instances, list):
        raise InvalidRequestError("'instances' is not a list; send {\"instances\": [IMAGE, ...]}.")
    return [
        each[INPUT] if isinstance(each, Mapping) and set(each) == {INPUT} else each
        for each in instances
    ]


def _rows(outputs: list[Tensor]) -> list[dict[str, Any]]:
    columns = {
        tensor.name: [each.decode() for each in tensor.values]
        if tensor.datatype == "BYTES"
        else list(tensor.values)
        for tensor in outputs
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
