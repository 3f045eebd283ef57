"""The OpenAPI description: what FastAPI knows of its routes, and what it cannot know of the others.

Nothing here is asked while a request is answered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api import protocol_schemas as protocol
from service.api import schemas
from service.api.open_inference import LENGTH_HEADER
from service.api.routes import NamedRoute
from service.codecs import tensors
from service.codecs.image_bodies import JSON_TYPE
from service.settings import ServiceSettings

_REFERENCE = "#/components/schemas/{model}"
_BINARY_TYPE = "application/octet-stream"
_BINARY = {"type": "string", "format": "binary"}
_COMMON_ERRORS = (400, 431, 500, 503)
"""Of every route: no HTTP, too long a head or query, a fault, too much to do or about to stop."""
_BODY_ERRORS = (408, 413, 415)
_MODEL_ERRORS = (404,)
_CONTROL_ERRORS = (403, 404, 409, 501, 504)
_WHITE_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)
"""An image that every model takes, since files are resized: a PNG in base64."""
_INFER_EXAMPLE = {
    "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [_WHITE_PIXEL]}]
}
_INSTANCES_EXAMPLE = {"instances": [{"b64": _WHITE_PIXEL}]}
_PATH_PARAMETERS = {
    "name": "a model's name; with -mc behind it, the same model with dropout alive",
    "version": "a version in service, by its number or as stable or canary",
}


@dataclass(frozen=True)
class _Operation:
    """What one route of a protocol takes and gives; `answer` None: an empty body."""

    summary: str
    answer: type[BaseModel] | dict[str, Any] | None
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    body_required: bool = False
    example: Any = None
    has_binary: bool = False
    error_shapes: dict[int, type[BaseModel]] = field(default_factory=dict)


_UNREADY: dict[int, type[BaseModel]] = {503: protocol.Unready}
_ROWS = _Operation(
    "Answer in row form",
    protocol.RowPredictions,
    (*_MODEL_ERRORS, *_BODY_ERRORS, 504),
    schemas.Rows,
    body_required=True,
    example=_INSTANCES_EXAMPLE,
)
_STATUS = _Operation("Whether a model is ready, and its versions", protocol.ModelStatus, (404,))
_SERVER = _Operation("What the server is", protocol.ServerMetadata)
_OPERATIONS = {
    "GET /v1/models": _Operation("The models' names", protocol.RowModels),
    "GET /v1/models/{name}": _STATUS,
    "POST /v1/models/{name}:predict": _ROWS,
    "GET /v2": _SERVER,
    "GET /v2/": _SERVER,
    "GET /v2/health/live": _Operation("Whether the process answers", schemas.Live),
    "GET /v2/health/ready": _Operation(
        "Whether a bundle is loaded and warmed", schemas.Ready, error_shapes=_UNREADY
    ),
    "GET /v2/models/stats": _Operation("What every model's requests cost", protocol.Statistics),
    "GET /v2/models/{name}": _Operation(
        "What a model takes and gives", protocol.ModelMetadata, _MODEL_ERRORS
    ),
    "GET /v2/models/{name}/ready": _Operation(
        "Whether a model answers", protocol.ModelReady, _MODEL_ERRORS, error_shapes=_UNREADY
    ),
    "GET /v2/models/{name}/config": _Operation(
        "Triton's model configuration", protocol.ModelConfiguration, _MODEL_ERRORS
    ),
    "GET /v2/models/{name}/stats": _Operation(
        "What a model's requests cost", protocol.Statistics, _MODEL_ERRORS
    ),
    "POST /v2/models/{name}/infer": _Operation(
        "Answer an inference request",
        protocol.InferResponse,
        (*_MODEL_ERRORS, *_BODY_ERRORS, 501, 504),
        tensors.InferRequest,
        body_required=True,
        example=_INFER_EXAMPLE,
        has_binary=True,
    ),
    "POST /v2/repository/index": _Operation(
        "Every version that serves or was refused, and why",
        {"type": "array", "items": {"$ref": _REFERENCE.format(model="IndexEntry")}},
        _BODY_ERRORS,
        protocol.IndexRequest,
    ),
    "POST /v2/repository/models/{name}/load": _Operation(
        "Put a model into service",
        None,
        (*_BODY_ERRORS, *_CONTROL_ERRORS),
        protocol.LoadRequest,
    ),
    "POST /v2/repository/models/{name}/unload": _Operation(
        "Take a model out of service",
        None,
        (*_BODY_ERRORS, *_CONTROL_ERRORS),
        protocol.UnloadRequest,
    ),
}
_OTHERS: tuple[type[BaseModel], ...] = (protocol.IndexEntry, schemas.Instances, schemas.Error)


def describe(
    found: dict[str, Any], routes: Sequence[NamedRoute], settings: ServiceSettings
) -> dict[str, Any]:
    """Complete the description that FastAPI has made; it is changed in place, and returned.

    routes: those of /v1 and /v2.
    """
    for methods in found["paths"].values():
        for operation in methods.values():
            body = operation.get("requestBody", {}).get("content", {})
            if JSON_TYPE in body:
                body[JSON_TYPE]["example"] = _INSTANCES_EXAMPLE
            for status in _COMMON_ERRORS:
                operation["responses"].setdefault(str(status), _error(status))
            operation["responses"].setdefault("default", _error(None))
            for parameter in operation.get("parameters", ()):
                _narrow(parameter, settings)
    for route in routes:
        method = "POST" if "POST" in (route.methods or ()) else "GET"
        path = route.path.replace("/versions/{version}", "")
        operation = _operation(route.path, method, _OPERATIONS[f"{method} {path}"])
        found["paths"].setdefault(route.path, {})[method.lower()] = operation
    shapes = {each.answer for each in _OPERATIONS.values() if isinstance(each.answer, type)}
    shapes |= {each.body for each in _OPERATIONS.values() if each.body is not None}
    shapes |= {shape for each in _OPERATIONS.values() for shape in each.error_shapes.values()}
    chosen = sorted(shapes | set(_OTHERS), key=lambda shape: shape.__name__)
    _, described = models_json_schema(
        [(shape, "validation") for shape in chosen], ref_template=_REFERENCE
    )
    known = found["components"]["schemas"]
    known |= {name: each for name, each in described["$defs"].items() if name not in known}
    return found


def _narrow(parameter: dict[str, Any], settings: ServiceSettings) -> None:
    """Say of a query parameter what may be sent: no null, which only stands for leaving it out."""
    schema = parameter["schema"]
    options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(options) == 1:
        del schema["anyOf"]
        schema |= options[0]
    if parameter["name"] == "samples":
        schema["oneOf"][1]["maximum"] = settings.max_samples


def _operation(path: str, method: str, known: _Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": ["TensorFlow Serving" if path.startswith("/v1") else "Open Inference Protocol"],
        "summary": known.summary,
        "operationId": "_".join(re.findall(r"\w+", f"{method.lower()} {path}"))
        + ("_" if path.endswith("/") else ""),
        "responses": {"200": _answer(known)}
        | {
            str(status): _error(status, known.error_shapes.get(status, schemas.Error))
            for status in sorted({*_COMMON_ERRORS, *known.errors})
        }
        | {"default": _error(None)},
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string", "pattern": "^[^/]+$"},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]
    if known.has_binary:
        parameters.append(
            {
                "name": LENGTH_HEADER,
                "in": "header",
                "description": "bytes of the JSON, where binary tensors follow it; 0: the body is "
                "one FP32 image",
                "schema": {"type": "integer", "minimum": 0},
            }
        )
    if parameters:
        described["parameters"] = parameters
    if known.body is not None:
        content: dict[str, Any] = {JSON_TYPE: {"schema": _reference(known.body)}}
        if known.example is not None:
            content[JSON_TYPE]["example"] = known.example
        if known.has_binary:
            content[_BINARY_TYPE] = {"schema": _BINARY}
        described["requestBody"] = {"required": known.body_required, "content": content}
    return described


def _answer(known: _Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus.OK.phrase}
    if known.answer is None:
        return answer
    schema = known.answer if isinstance(known.answer, dict) else _reference(known.answer)
    answer["content"] = {JSON_TYPE: {"schema": schema}}
    if known.has_binary:
        answer["content"][_BINARY_TYPE] = {"schema": _BINARY}
        answer["headers"] = {
            LENGTH_HEADER: {
                "description": "bytes of the JSON that the binary tensors follow",
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        }
    return answer


def _error(status: int | None, shape: type[BaseModel] = schemas.Error) -> dict[str, Any]:
    phrase = "Any other error" if status is None else HTTPStatus(status).phrase
    return {"description": phrase, "content": {JSON_TYPE: {"schema": _reference(shape)}}}


def _reference(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=shape.__name__)}
