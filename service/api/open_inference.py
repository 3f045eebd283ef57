"""/v2/…: the Open Inference Protocol with Triton's extensions.

Handles requests and responses; `service.codecs` parses and serialises them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from model.bundle.store import SAMPLED_SUFFIX
from service import API_VERSION
from service.api.open_inference_tensors import (
    InferOptions,
    ModelEndpoint,
    TensorSpec,
    split_model_name,
)
from service.api.record_answer_for_log_shadow_feedback import INFER, AnswerNotes
from service.api.routes import (
    MAX_INLINE_NUMBERS,
    RawResponse,
    json_response,
    request_id,
    require_control,
)
from service.codecs.body_to_images import check_input_shapes, check_raw_length
from service.codecs.compression import IDENTITY, choose_compressor
from service.codecs.infer_requests import InferRequest, Input, Payload, parse_request, read_inputs
from service.codecs.infer_responses import top_classes, write_response
from service.codecs.tensors import Parameters, Tensor
from service.codecs.validation_sentence import quote
from service.errors import (
    InvalidJsonError,
    InvalidQueryError,
    InvalidRequestError,
    InvalidTensorError,
    NotReadyError,
    UnsupportedError,
)
from service.http.client_rate_limits import charge_images
from service.http.error_responses import domain_error_response
from service.http.fast_path.fast_path_route import FastPathRoute
from service.http.request_body import Body, BodyReader, header
from service.keys.scopes import public, requires
from service.observability.metrics_recorder import Metrics
from service.observability.triton_statistics import describe_all
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader, client_address
from service.settings import ServiceSettings

LENGTH_HEADER = "Inference-Header-Content-Length"
_LENGTH_HEADER = LENGTH_HEADER.lower().encode()
_JSON, _BINARY = b"application/json", b"application/octet-stream"

RequestHandler = Callable[[Request], Awaitable[Response]]

_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "statistics",
    "model_configuration",
    "model_repository",
)
_LENGTH_DIGITS_LIMIT = 20
_NUMBERS_PER_CLASS = 4
"""Approximate number of values in all outputs of an image, divided by the number of classes."""
_OVERRIDE_PREFIXES = ("config", "file:")
_SHARED_MEMORY_PREFIX = "shared_memory_"


def router(
    settings: ServiceSettings,
    repository: Repository,
    reader: ImageReader,
    metrics: Metrics,
    notes: AnswerNotes,
    not_ready_reason: Callable[[], str | None],
) -> APIRouter:
    """Build every route of the protocol.

    not_ready_reason: returns in one sentence why the service is not ready; None when it is.
    """
    endpoints = _OpenInferenceEndpoints(
        settings, repository, reader, metrics, notes, not_ready_reason
    )
    get: dict[str, RequestHandler] = {
        "": endpoints.server,
        "/": endpoints.server,
        "/health/live": endpoints.live,
        "/health/ready": endpoints.ready,
        "/models/stats": endpoints.all_statistics,
    }
    of_model: dict[str, RequestHandler] = {
        "": endpoints.model,
        "/ready": endpoints.model_ready,
        "/config": endpoints.configuration,
        "/stats": endpoints.statistics,
    }
    post: dict[str, RequestHandler] = {
        "/repository/index": endpoints.index,
        "/repository/models/{name}/load": endpoints.load,
        "/repository/models/{name}/unload": endpoints.unload,
    }
    for folder in ("/models/{name}", "/models/{name}/versions/{version}"):
        get |= {folder + path: endpoint for path, endpoint in of_model.items()}
        post[f"{folder}/infer"] = endpoints.infer
    routes = APIRouter(prefix="/v2", include_in_schema=False)  # `openapi` describes them
    for path, endpoint in post.items():
        kind = FastPathRoute if endpoint == endpoints.infer else APIRoute
        routes.add_api_route(path, endpoint, methods=["POST"], route_class_override=kind)
    for path, endpoint in get.items():
        routes.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return routes


class _OpenInferenceEndpoints:
    """The request handlers of the protocol, one method per route."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        metrics: Metrics,
        notes: AnswerNotes,
        not_ready_reason: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._metrics = metrics
        self._notes = notes
        self._not_ready_reason = not_ready_reason
        self._bodies = BodyReader(settings)

    @requires("read")
    async def server(self, _request: Request) -> Response:
        """GET /v2: the server's name, version and extensions."""
        return json_response(
            {"name": "dropserve", "version": API_VERSION, "extensions": _EXTENSIONS}
        )

    @public
    async def live(self, _request: Request) -> Response:
        """GET /v2/health/live."""
        return json_response({"live": True})

    @public
    async def ready(self, _request: Request) -> Response:
        """GET /v2/health/ready."""
        problem = self._not_ready_reason()
        if problem is not None:
            return domain_error_response(NotReadyError(problem), {"ready": False})
        return json_response({"ready": True})

    @requires("read")
    async def model(self, request: Request) -> Response:
        """GET /v2/models/{name}: the metadata of a model."""
        endpoint = self._endpoint(request)
        return json_response(
            {
                "name": endpoint.name,
                "versions": [each.version for each in self._repository.versions(endpoint.model)],
                "platform": "onnx_onnxv1",
                "inputs": [_tensor_metadata(endpoint.input)],
                "outputs": [_tensor_metadata(each) for each in endpoint.outputs],
            }
        )

    @requires("read")
    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}/ready."""
        name = request.path_params["name"]
        try:
            self._endpoint(request)
        except NotReadyError as error:
            return domain_error_response(error, {"name": name, "ready": False})
        return json_response({"name": name, "ready": True})

    @requires("read")
    async def configuration(self, request: Request) -> Response:
        """GET /v2/models/{name}/config: Triton's model configuration."""
        endpoint = self._endpoint(request)
        version = endpoint.model.version_number
        return json_response(
            {
                "name": endpoint.name,
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "version_policy": {"specific": {"versions": [version]}},
                "max_batch_size": self._settings.max_images,
                "input": [_config_tensor(endpoint.input)],
                "output": [_config_tensor(each) for each in endpoint.outputs],
                "instance_group": [{"name": endpoint.name, "kind": "KIND_CPU", "count": 1}],
                "default_model_filename": "model.onnx",
                "dynamic_batching": {"preferred_batch_size": [self._settings.max_batch_rows]},
                "parameters": {},
            }
        )

    @requires("read")
    async def statistics(self, request: Request) -> Response:
        """GET /v2/models/{name}/stats."""
        endpoint = self._endpoint(request)
        version = request.path_params.get("version")
        versions = [endpoint.model] if version else self._repository.versions(endpoint.model)
        return json_response(
            await describe_all([(endpoint.name, each.version) for each in versions], self._metrics)
        )

    @requires("read")
    async def all_statistics(self, _request: Request) -> Response:
        """GET /v2/models/stats."""
        return json_response(
            await describe_all(
                [(endpoint.name, endpoint.model.version) for endpoint in self._endpoints()],
                self._metrics,
            )
        )

    @requires("read")
    async def index(self, request: Request) -> Response:
        """POST /v2/repository/index: the active, refused and unloaded versions."""
        options = await self._read_object(request)
        entries = [
            _index_entry(endpoint.name, endpoint.model.version, "READY", "")
            for endpoint in self._endpoints()
        ]
        ready = options.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequestError(f"'ready' is true or false, but got {quote(ready)}.")
        if not ready:
            for refusal in self._repository.load_failures:
                entries += [
                    _index_entry(name, str(refusal.version), "UNAVAILABLE", refusal.reason)
                    for name in self._endpoint_names(refusal.name)
                ]
            for unloaded in self._repository.unloaded_models:
                newest = self._repository.target_version(unloaded)
                entries += [
                    _index_entry(name, newest, "UNAVAILABLE", "unloaded")
                    for name in self._endpoint_names(unloaded)
                ]
        return Response(orjson.dumps(entries), media_type="application/json")

    @requires("control")
    async def load(self, request: Request) -> Response:
        """POST /v2/repository/models/{name}/load."""
        require_control(request, self._settings)
        parameters = (await self._read_object(request)).get("parameters")
        if not isinstance(parameters, dict | None):
            raise InvalidRequestError("'parameters' is no JSON object; leave it out.")
        for name in parameters or ():
            if name.startswith(_OVERRIDE_PREFIXES):
                raise UnsupportedError(
                    f"Parameter {name!r} is not offered: a model is loaded as it lies in the "
                    "models folder; put a version there and load it without."
                )
        name, _ = split_model_name(request.path_params["name"], self._settings)
        await self._repository.reload(name)
        return Response(media_type="application/json")

    @requires("control")
    async def unload(self, request: Request) -> Response:
        """POST /v2/repository/models/{name}/unload."""
        require_control(request, self._settings)
        await self._read_object(request)
        await self._repository.unload(request.path_params["name"])
        return Response(media_type="application/json")

    @requires("predict")
    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{name}/infer."""
        body = await self._bodies.read(request)
        length = _json_length(request)
        if length == 0:
            endpoint = self._endpoint(request, request_id(request))
            data = body.data
            if body.encoding != IDENTITY:
                data, _ = await self._rewrite_as_binary(request, body, length)
            infer_request, payload = _raw_request(endpoint, data), Payload(None, memoryview(data))
        else:
            parsed = self._reader.parse_inline(body, length)
            if parsed is None:
                parsed = parse_request(*await self._rewrite_as_binary(request, body, length))
            infer_request, payload = parsed
            id_ = request_id(request) if infer_request.id in (None, "") else str(infer_request.id)
            endpoint = self._endpoint(request, id_)
        with endpoint.model, endpoint.statistics.time_request() as timing:
            options = endpoint.options(infer_request.parameters, self._settings)
            _check_outputs(infer_request, endpoint)
            check_input_shapes(infer_request, self._reader.limits)
            tensors = read_inputs(infer_request, payload)
            charge_images(request.scope, _image_count(tensors))
            images = await endpoint.read_images(tensors, self._reader, request)
            timing.mark_input_read(len(images))
            outputs = await endpoint.infer(images, options, _timeout_seconds(infer_request))
            timing.mark_predicted()
            if self._notes.wanted(endpoint.model):
                self._notes.note_outputs(INFER, endpoint, images, options, outputs)
            response_header = _response_header(endpoint, infer_request, options)
            accepted = header(request.scope, b"accept-encoding")
            if outputs[0].values.size * _NUMBERS_PER_CLASS <= MAX_INLINE_NUMBERS:
                return _build_response(response_header, outputs, infer_request, endpoint, accepted)
            return await asyncio.to_thread(
                _build_response, response_header, outputs, infer_request, endpoint, accepted
            )

    async def _rewrite_as_binary(
        self, request: Request, body: Body, json_length: int | None
    ) -> tuple[bytes, int]:
        spec = self._endpoint(request).spec  # the same height and width in every version
        return await self._reader.rewrite_as_binary(
            body, json_length, spec, client_address(request)
        )

    def _endpoint(self, request: Request, id_: str | None = None) -> ModelEndpoint:
        parameters = request.path_params
        name, dropout_active = split_model_name(parameters["name"], self._settings)
        model = self._repository.get(name, parameters.get("version"), id_)
        return ModelEndpoint(model, dropout_active)

    def _endpoints(self) -> list[ModelEndpoint]:
        dropout_states = (False, True) if self._settings.uncertainty else (False,)
        return [
            ModelEndpoint(model, dropout_active)
            for versions in self._repository.active_versions
            for model in versions.all
            for dropout_active in dropout_states
        ]

    def _endpoint_names(self, name: str) -> list[str]:
        return [name, name + SAMPLED_SUFFIX] if self._settings.uncertainty else [name]

    async def _read_object(self, request: Request) -> Mapping[str, Any]:
        """Read a body that is a JSON object; an empty body counts as an empty object."""
        body = await self._bodies.read_small(request)
        if not body:
            return {}
        try:
            content = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidJsonError(f"The body is not JSON that can be read ({error}).") from None
        if not isinstance(content, dict):
            raise InvalidRequestError("The body is no JSON object; send {} or nothing.")
        return content


def _image_count(tensors: Sequence[Tensor]) -> int:
    return max((len(each.values) for each in tensors if each.values.ndim), default=1)


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}


def _config_tensor(tensor: TensorSpec) -> dict[str, Any]:
    kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    # Triton's `dims` have no batch dimension, and may not be empty: a scalar is [1].
    return {"name": tensor.name, "data_type": kind, "dims": list(tensor.shape) or [1]}


def _index_entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def _json_length(request: Request) -> int | None:
    text = header(request.scope, _LENGTH_HEADER)
    return None if text is None else _parse_length(text)


@lru_cache(maxsize=256)
def _parse_length(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < _LENGTH_DIGITS_LIMIT):
        raise InvalidRequestError(
            f"{LENGTH_HEADER} is {text[:30]!r}; send the length of the JSON in bytes."
        )
    return int(text)


def _raw_request(endpoint: ModelEndpoint, body: bytes) -> InferRequest:
    """Build the description of a raw request: one FP32 image, with all outputs in binary."""
    check_raw_length(len(body), endpoint.spec)
    size: Parameters = {"binary_data_size": len(body)}
    shape = [1, *endpoint.input.shape]
    infer_request = Input(name=endpoint.input.name, datatype="FP32", shape=shape, parameters=size)
    return InferRequest(inputs=[infer_request], parameters={"binary_data_output": True})


def _response_header(
    endpoint: ModelEndpoint, infer_request: InferRequest, options: InferOptions | None
) -> dict[str, Any]:
    header: dict[str, Any] = {"model_name": endpoint.name, "model_version": endpoint.model.version}
    if infer_request.id is not None:
        header["id"] = str(infer_request.id)
    if options is not None:
        header["parameters"] = options.parameters()
    return header


def _timeout_seconds(infer_request: InferRequest) -> float | None:
    """Convert the parameter `timeout` from microseconds to seconds; None for 0, no timeout."""
    timeout = infer_request.parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InvalidQueryError("Parameter 'timeout' is a number of microseconds, 0 or more.")
    return timeout / 1e6 if timeout else None


def _check_outputs(infer_request: InferRequest, endpoint: ModelEndpoint) -> None:
    """Refuse outputs that the model does not have, before the model runs."""
    if not infer_request.outputs:
        return
    datatypes = {each.name: each.datatype for each in endpoint.outputs}
    for output in infer_request.outputs:
        if output.name not in datatypes:
            raise InvalidTensorError(
                f"There is no output {output.name!r}; there is {', '.join(datatypes)}."
            )
        if any(name.startswith(_SHARED_MEMORY_PREFIX) for name in output.parameters):
            raise UnsupportedError(
                f"Output {output.name!r}: shared memory is not offered; take it from the answer."
            )
        count = output.parameters.get("classification")
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidTensorError(
                f"Output {output.name!r}: 'classification' is a number of classes, 1 or more."
            )
        if count and output.name not in ("probabilities", "mean_probabilities"):
            raise InvalidTensorError(
                f"Output {output.name!r} holds no scores of classes to be put in order."
            )


def _with_top_classes(
    outputs: list[Tensor], infer_request: InferRequest, endpoint: ModelEndpoint
) -> list[Tensor]:
    if not infer_request.outputs:
        return outputs
    class_names = endpoint.model.bundle.manifest.class_names
    counts = {
        output.name: count
        for output in infer_request.outputs
        if (count := output.parameters.get("classification"))
    }
    return [
        top_classes(tensor, int(counts[tensor.name]), class_names)
        if tensor.name in counts
        else tensor
        for tensor in outputs
    ]


def _build_response(
    response_header: dict[str, Any],
    outputs: list[Tensor],
    infer_request: InferRequest,
    endpoint: ModelEndpoint,
    accept_encoding: str | None,
) -> RawResponse:
    payload, json_length = write_response(
        response_header, _with_top_classes(outputs, infer_request, endpoint), infer_request
    )
    headers = []
    if json_length is not None:
        headers.append((_LENGTH_HEADER, b"%d" % json_length))
    compressor = choose_compressor(accept_encoding) if accept_encoding else None
    if compressor is not None:
        encoding, compress = compressor
        headers += [(b"content-encoding", encoding.encode()), (b"vary", b"Accept-Encoding")]
        payload = compress(payload)
    return RawResponse(payload, _JSON if json_length is None else _BINARY, headers)
