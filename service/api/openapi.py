"""Completes the OpenAPI description that FastAPI generates, with the routes of /v1 and /v2.

FastAPI cannot describe these, since their handlers parse the requests. No request runs this code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api import open_inference_schemas as wire
from service.api import schemas
from service.api.feedback_schemas import LabelOfAnswer
from service.api.open_inference import LENGTH_HEADER
from service.codecs import infer_requests
from service.codecs.body_to_images import JSON_TYPE
from service.settings import ServiceSettings

_REFERENCE = "#/components/schemas/{model}"
_BINARY_TYPE = "application/octet-stream"
_BINARY = {"type": "string", "format": "binary"}
_COMMON_ERRORS = (400, 431, 500, 503)
"""Errors of every route: malformed HTTP, a head that is too long, a fault, overload or shutdown."""
_BODY_ERRORS = (408, 413, 415)
_MODEL_ERRORS = (404,)
_CONTROL_ERRORS = (403, 404, 409, 501, 504)
_WHITE_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)
"""A PNG file in base64. Every model accepts it, since image files are resized."""
_INFER_EXAMPLE = {
    "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [_WHITE_PIXEL]}]
}
_INSTANCES_EXAMPLE = {"instances": [{"b64": _WHITE_PIXEL}]}
_PARAMETER_REFERENCE = "#/components/parameters/{key}"
_NAME, _PROTOCOL_NAME, _VERSION = "ModelName", "ProtocolModelName", "ActiveVersion"
_PATH_PARAMETERS = {
    _NAME: ("name", "a model's name"),
    _PROTOCOL_NAME: (
        "name",
        "a model's name; with the suffix -mc, the same model with dropout active",
    ),
    _VERSION: ("version", "an active version, by its number or as stable or canary"),
}
"""Name and description of each parameter in a path, by its key among the components."""
_STABLE = "stable"
_CONTROL = (
    "Changes what serves, so it is for operators: it is refused (403) from web pages, this "
    "description's among them, and by default on the public port. `python -m service.control` "
    "sends it."
)


@dataclass(frozen=True)
class _Operation:
    """The request and the response of one route; `response` is None for an empty body."""

    summary: str
    response: type[BaseModel] | dict[str, Any] | None
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    body_required: bool = False
    example: Any = None
    accepts_binary: bool = False
    error_schemas: dict[int, type[BaseModel]] = field(default_factory=dict)


_UNREADY: dict[int, type[BaseModel]] = {503: wire.Unready}
_ROWS = _Operation(
    "Answer in row form",
    wire.RowPredictions,
    (*_MODEL_ERRORS, *_BODY_ERRORS, 504),
    schemas.Rows,
    body_required=True,
    example=_INSTANCES_EXAMPLE,
)
_STATUS = _Operation("Whether a model is ready, and its versions", wire.ModelStatus, (404,))
_SERVER = _Operation("What the server is", wire.ServerMetadata)
_OPERATIONS = {
    "GET /v1/models": _Operation("The models' names", wire.RowModels),
    "GET /v1/models/{name}": _STATUS,
    "POST /v1/models/{name}:predict": _ROWS,
    "GET /v2": _SERVER,
    "GET /v2/": _SERVER,
    "GET /v2/health/live": _Operation("Whether the process answers", schemas.Live),
    "GET /v2/health/ready": _Operation(
        "Whether a bundle is loaded and warmed, and the service is not ending",
        schemas.Ready,
        error_schemas=_UNREADY,
    ),
    "GET /v2/models/stats": _Operation("What every model's requests cost", wire.Statistics),
    "GET /v2/models/{name}": _Operation(
        "What a model takes and gives", wire.ModelMetadata, _MODEL_ERRORS
    ),
    "GET /v2/models/{name}/ready": _Operation(
        "Whether a model answers",
        wire.ModelReady,
        _MODEL_ERRORS,
        error_schemas=_UNREADY,
    ),
    "GET /v2/models/{name}/config": _Operation(
        "Triton's model configuration", wire.ModelConfiguration, _MODEL_ERRORS
    ),
    "GET /v2/models/{name}/stats": _Operation(
        "What a model's requests cost", wire.Statistics, _MODEL_ERRORS
    ),
    "POST /v2/models/{name}/infer": _Operation(
        "Answer an inference request",
        wire.InferResponse,
        (*_MODEL_ERRORS, *_BODY_ERRORS, 501, 504),
        infer_requests.InferRequest,
        body_required=True,
        example=_INFER_EXAMPLE,
        accepts_binary=True,
    ),
    "POST /v2/repository/index": _Operation(
        "Every version that serves or was refused, and why",
        {"type": "array", "items": {"$ref": _REFERENCE.format(model="IndexEntry")}},
        _BODY_ERRORS,
        wire.IndexRequest,
        example={"ready": False},
    ),
    "POST /v2/repository/models/{name}/load": _Operation(
        "Put a model into service",
        None,
        (*_BODY_ERRORS, *_CONTROL_ERRORS),
        wire.LoadRequest,
        example={},
    ),
    "POST /v2/repository/models/{name}/unload": _Operation(
        "Take a model out of service",
        None,
        (*_BODY_ERRORS, *_CONTROL_ERRORS),
        wire.UnloadRequest,
        example={},
    ),
}
_EXTRA_SCHEMAS: tuple[type[BaseModel], ...] = (
    wire.IndexEntry,
    schemas.Instances,
    schemas.OneInstance,
    schemas.Error,
    LabelOfAnswer,
)


def complete_description(
    description: dict[str, Any], routes: Sequence[APIRoute], settings: ServiceSettings
) -> dict[str, Any]:
    """Add the routes of /v1 and /v2, common errors and examples to FastAPI's description.

    description: changed in place, and returned. routes: the routes of /v1 and /v2.
    """
    _complete_native_operations(description, settings)
    for route in routes:
        method = "POST" if "POST" in (route.methods or ()) else "GET"
        path = route.path.replace("/versions/{version}", "")
        operation = _describe_operation(route.path, method, _OPERATIONS[f"{method} {path}"])
        description["paths"].setdefault(route.path, {})[method.lower()] = operation
    _add_schemas(description)
    description["components"]["parameters"] = {
        key: _path_parameter(name, text) for key, (name, text) in _PATH_PARAMETERS.items()
    }
    description["components"]["parameters"][_VERSION]["example"] = _STABLE
    return description


def description_for_client(
    description: dict[str, Any], prefix: str, model: str | None
) -> dict[str, Any]:
    """Return a description whose requests can be sent as they are by the client that reads it.

    prefix: the path prefix under which the client reaches the service. model: the example of a
    model's name; None if there is no model yet.
    """
    components = description["components"]
    parameters = dict(components["parameters"])
    if model is not None:
        for key in (_NAME, _PROTOCOL_NAME):
            parameters[key] = {**parameters[key], "example": model}
    return {
        **description,
        **({"servers": [{"url": prefix}]} if prefix else {}),
        "components": {**components, "parameters": parameters},
    }


def _complete_native_operations(description: dict[str, Any], settings: ServiceSettings) -> None:
    for methods in description["paths"].values():
        for operation in methods.values():
            body = operation.get("requestBody", {}).get("content", {})
            if JSON_TYPE in body:
                body[JSON_TYPE].setdefault("example", _INSTANCES_EXAMPLE)
            for status in _COMMON_ERRORS:
                operation["responses"].setdefault(str(status), _error_response(status))
            operation["responses"].setdefault("default", _error_response(None))
            if "403" in operation["responses"]:
                operation["description"] = _CONTROL
            parameters = operation.get("parameters", [])
            for position, parameter in enumerate(parameters):
                if (parameter["in"], parameter["name"]) == ("path", "name"):
                    parameters[position] = {"$ref": _PARAMETER_REFERENCE.format(key=_NAME)}
                else:
                    _narrow_parameter(parameter, settings)


def _add_schemas(description: dict[str, Any]) -> None:
    classes = set(_EXTRA_SCHEMAS)
    for operation in _OPERATIONS.values():
        classes |= {operation.response} if isinstance(operation.response, type) else set()
        classes |= {operation.body} if operation.body is not None else set()
        classes |= set(operation.error_schemas.values())
    by_name = sorted(classes, key=lambda schema_class: schema_class.__name__)
    _, document = models_json_schema(
        [(schema_class, "validation") for schema_class in by_name], ref_template=_REFERENCE
    )
    schemas_by_name = description["components"]["schemas"]
    for name, schema in document["$defs"].items():
        schemas_by_name.setdefault(name, schema)


def _narrow_parameter(parameter: dict[str, Any], settings: ServiceSettings) -> None:
    """Describe exactly the values of a query parameter; null is not one, it means absent."""
    schema = parameter["schema"]
    options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(options) == 1:
        del schema["anyOf"]
        schema |= options[0]
    if parameter["name"] == "samples":
        schema["oneOf"][1]["maximum"] = settings.max_samples
    if parameter["required"]:
        parameter["example"] = schema["minimum"]  # the number of a version, or of an example


def _describe_operation(path: str, method: str, operation: _Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "tags": ["TensorFlow Serving" if path.startswith("/v1") else "Open Inference Protocol"],
        "summary": operation.summary,
        "operationId": "_".join(re.findall(r"\w+", f"{method.lower()} {path}"))
        + ("_" if path.endswith("/") else ""),
        "responses": {"200": _success_response(operation)}
        | {
            str(status): _error_response(status, operation.error_schemas.get(status, schemas.Error))
            for status in sorted({*_COMMON_ERRORS, *operation.errors})
        }
        | {"default": _error_response(None)},
    }
    if 403 in operation.errors:
        document["description"] = _CONTROL
    parameters = _parameters(path, operation)
    if parameters:
        document["parameters"] = parameters
    if operation.body is not None:
        content: dict[str, Any] = {JSON_TYPE: {"schema": _schema_reference(operation.body)}}
        if operation.example is not None:
            content[JSON_TYPE]["example"] = operation.example
        if operation.accepts_binary:
            content[_BINARY_TYPE] = {"schema": _BINARY}
        document["requestBody"] = {"required": operation.body_required, "content": content}
    return document


def _path_parameter(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "pattern": "^[^/]+$"},
    }


def _parameters(path: str, operation: _Operation) -> list[dict[str, Any]]:
    keys = {"name": _PROTOCOL_NAME, "version": _VERSION}
    parameters: list[dict[str, Any]] = [
        {"$ref": _PARAMETER_REFERENCE.format(key=keys[name])}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if operation.accepts_binary:
        parameters.append(
            {
                "name": LENGTH_HEADER,
                "in": "header",
                "description": "bytes of the JSON, where binary tensors follow it; 0: the body is "
                "one FP32 image",
                "schema": {"type": "integer", "minimum": 0},
            }
        )
    return parameters


def _success_response(operation: _Operation) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus.OK.phrase}
    if operation.response is None:
        return response
    schema = (
        operation.response
        if isinstance(operation.response, dict)
        else _schema_reference(operation.response)
    )
    response["content"] = {JSON_TYPE: {"schema": schema}}
    if operation.accepts_binary:
        response["content"][_BINARY_TYPE] = {"schema": _BINARY}
        response["headers"] = {
            LENGTH_HEADER: {
                "description": "bytes of the JSON that the binary tensors follow",
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        }
    return response


def _error_response(
    status: int | None, schema_class: type[BaseModel] = schemas.Error
) -> dict[str, Any]:
    phrase = "Any other error" if status is None else HTTPStatus(status).phrase
    return {
        "description": phrase,
        "content": {JSON_TYPE: {"schema": _schema_reference(schema_class)}},
    }


def _schema_reference(schema_class: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=schema_class.__name__)}
