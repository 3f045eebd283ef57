"""/v2/…: the Open Inference Protocol with Triton's extensions. No numerics."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from model.bundle.store import SAMPLED_SUFFIX
from model.dropout.sampling import Sampling
from service import API_VERSION
from service.api.model_endpoint import Description, ModelEndpoint, bundle_name, told
from service.api.routes import (
    MANY_NUMBERS,
    Answer,
    NamedRoute,
    json_response,
    request_id,
    require_control,
)
from service.codecs.compression import IDENTITY, packer
from service.codecs.image_bodies import check_inputs, check_raw
from service.codecs.tensors import (
    InferRequest,
    Input,
    Parameters,
    Payload,
    Tensor,
    classified,
    parse,
    read_inputs,
)
from service.codecs.tensors import write as write_response
from service.errors import (
    InvalidJsonError,
    InvalidQueryError,
    InvalidRequestError,
    InvalidTensorError,
    NotReadyError,
    UnsupportedError,
)
from service.http.body import Body, BodyReader, header
from service.http.responses import domain_error_response
from service.observability.metrics import Metrics
from service.observability.model_statistics import totals
from service.registry.repository import Repository
from service.sandbox.image_reader import ImageReader, client_of
from service.settings import ServiceSettings

LENGTH_HEADER = "Inference-Header-Content-Length"
_LENGTH_HEADER = LENGTH_HEADER.lower().encode()
_JSON, _BINARY = b"application/json", b"application/octet-stream"

Endpoint = Callable[[Request], Awaitable[Response]]

_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "statistics",
    "model_configuration",
    "model_repository",
)
_LONG_NUMBER = 20
_COLUMNS = 4
"""Most outputs with a number for each class, and the rest of them."""
_OVERRIDES = ("config", "file:")
_SHARED = "shared_memory_"


def routes(
    settings: ServiceSettings, repository: Repository, reader: ImageReader, metrics: Metrics
) -> list[NamedRoute]:
    """Build every route of the protocol."""
    protocol = _Protocol(settings, repository, reader, metrics)
    get: dict[str, Endpoint] = {
        "": protocol.server,
        "/": protocol.server,
        "/health/live": protocol.live,
        "/health/ready": protocol.ready,
        "/models/stats": protocol.all_statistics,
    }
    of_model: dict[str, Endpoint] = {
        "": protocol.model,
        "/ready": protocol.model_ready,
        "/config": protocol.configuration,
        "/stats": protocol.statistics,
    }
    post: dict[str, Endpoint] = {
        "/repository/index": protocol.index,
        "/repository/models/{name}/load": protocol.load,
        "/repository/models/{name}/unload": protocol.unload,
    }
    for folder in ("/models/{name}", "/models/{name}/versions/{version}"):
        get |= {folder + path: endpoint for path, endpoint in of_model.items()}
        post[f"{folder}/infer"] = protocol.infer
    return [
        *(NamedRoute(f"/v2{path}", endpoint, methods=["POST"]) for path, endpoint in post.items()),
        *(NamedRoute(f"/v2{path}", endpoint, methods=["GET"]) for path, endpoint in get.items()),
    ]


class _Protocol:
    """The endpoints."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._metrics = metrics
        self._bodies = BodyReader(settings)

    async def server(self, _request: Request) -> Response:
        return json_response(
            {"name": "dropserve", "version": API_VERSION, "extensions": _EXTENSIONS}
        )

    async def live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        problem = self._repository.problem()
        if problem is not None:
            return domain_error_response(NotReadyError(problem), {"ready": False})
        return json_response({"ready": True})

    async def model(self, request: Request) -> Response:
        face = self._face(request)
        return json_response(
            {
                "name": face.name,
                "versions": [each.version for each in self._repository.versions(face.served)],
                "platform": "onnx_onnxv1",
                "inputs": [_metadata(face.input)],
                "outputs": [_metadata(each) for each in face.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            self._face(request)
        except NotReadyError as error:
            return domain_error_response(error, {"name": name, "ready": False})
        return json_response({"name": name, "ready": True})

    async def configuration(self, request: Request) -> Response:
        face = self._face(request)
        version = face.served.number
        return json_response(
            {
                "name": face.name,
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "version_policy": {"specific": {"versions": [version]}},
                "max_batch_size": self._settings.max_images,
                "input": [_configured(face.input)],
                "output": [_configured(each) for each in face.outputs],
                "instance_group": [{"name": face.name, "kind": "KIND_CPU", "count": 1}],
                "default_model_filename": "model.onnx",
                "dynamic_batching": {"preferred_batch_size": [self._settings.max_batch_rows]},
                "parameters": {},
            }
        )

    async def statistics(self, request: Request) -> Response:
        face = self._face(request)
        asked = request.path_params.get("version")
        versions = [face.served] if asked else self._repository.versions(face.served)
        return json_response(
            await totals([(face.name, each.version) for each in versions], self._metrics)
        )

    async def all_statistics(self, _request: Request) -> Response:
        return json_response(
            await totals(
                [(face.name, face.served.version) for face in self._faces()], self._metrics
            )
        )

    async def index(self, request: Request) -> Response:
        wanted = await self._object(request)
        entries = [_entry(face.name, face.served.version, "READY", "") for face in self._faces()]
        ready = wanted.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequestError(f"'ready' is true or false, but got {ready!r}.")
        if not ready:
            for refusal in self._repository.refusals:
                entries += [
                    _entry(name, str(refusal.version), "UNAVAILABLE", refusal.reason)
                    for name in self._names(refusal.name)
                ]
            for unloaded in self._repository.unloaded:
                newest = self._repository.newest(unloaded)
                entries += [
                    _entry(name, newest, "UNAVAILABLE", "unloaded")
                    for name in self._names(unloaded)
                ]
        return Response(orjson.dumps(entries), media_type="application/json")

    async def load(self, request: Request) -> Response:
        require_control(request, self._settings)
        parameters = (await self._object(request)).get("parameters")
        if not isinstance(parameters, dict | None):
            raise InvalidRequestError("'parameters' is no JSON object; leave it out.")
        for name in parameters or ():
            if name.startswith(_OVERRIDES):
                raise UnsupportedError(
                    f"Parameter {name!r} is not offered: a model is loaded as it lies in the "
                    "models folder; put a version there and load it without."
                )
        name, _ = bundle_name(request.path_params["name"], self._settings)
        await self._repository.reload(name)
        return Response(media_type="application/json")

    async def unload(self, request: Request) -> Response:
        require_control(request, self._settings)
        await self._object(request)
        name, _ = bundle_name(request.path_params["name"], self._settings)
        await self._repository.unload(name)
        return Response(media_type="application/json")

    async def infer(self, request: Request) -> Response:
        """Answer one inference request."""
        body = await self._bodies.read(request)
        length = _json_length(request)
        if length == 0:
            face = self._face(request, request_id(request))
            data = body.data
            if body.encoding != IDENTITY:
                data, _ = await self._condense(request, body, length)
            given, payload = _raw(face, data), Payload(None, memoryview(data))
        else:
            parsed = self._reader.parse_at_once(body, length)
            if parsed is None:
                parsed = parse(*await self._condense(request, body, length))
            given, payload = parsed
            face = self._face(request, request_id(request) if given.id is None else str(given.id))
        with face.served, face.statistics.request() as timing:
            how = face.how(given.parameters, self._settings)
            _check_outputs(given, face)
            check_inputs(given, self._reader.limits)
            tensors = read_inputs(given, payload)
            images = await face.images(tensors, self._reader, request)
            timing.has_read(len(images))
            outputs = await face.answer(images, how, _within(given))
            timing.has_answered()
            described = _header(face, given, how)
            accepted = header(request.scope, b"accept-encoding")
            if outputs[0].values.size * _COLUMNS <= MANY_NUMBERS:
                return _response(described, outputs, given, face, accepted)
            return await asyncio.to_thread(_response, described, outputs, given, face, accepted)

    async def _condense(
        self, request: Request, body: Body, json_length: int | None
    ) -> tuple[bytes, int]:
        spec = self._face(request).spec  # the same height and width in every version
        return await self._reader.condense(body, json_length, spec, client_of(request))

    def _face(self, request: Request, id_: str = "") -> ModelEndpoint:
        asked = request.path_params
        name, sampled = bundle_name(asked["name"], self._settings)
        served = self._repository.get(name, asked.get("version"), id_)
        return ModelEndpoint(served, sampled)

    def _faces(self) -> list[ModelEndpoint]:
        kinds = (False, True) if self._settings.uncertainty else (False,)
        return [
            ModelEndpoint(served, sampled)
            for offer in self._repository.offers
            for served in offer.all
            for sampled in kinds
        ]

    def _names(self, name: str) -> list[str]:
        return [name, name + SAMPLED_SUFFIX] if self._settings.uncertainty else [name]

    async def _object(self, request: Request) -> Mapping[str, Any]:
        """Read a body that is a JSON object, or nothing."""
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


def _metadata(tensor: Description) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}


def _configured(tensor: Description) -> dict[str, Any]:
    kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    # Without the batch; a scalar for each image is one element of one dimension there.
    return {"name": tensor.name, "data_type": kind, "dims": list(tensor.shape) or [1]}


def _entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def _json_length(request: Request) -> int | None:
    text = header(request.scope, _LENGTH_HEADER)
    return None if text is None else _length(text)


@lru_cache(maxsize=256)
def _length(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < _LONG_NUMBER):
        raise InvalidRequestError(
            f"{LENGTH_HEADER} is {text[:30]!r}; send the length of the JSON in bytes."
        )
    return int(text)


def _raw(face: ModelEndpoint, body: bytes) -> InferRequest:
    """Describe a raw request: the body is one image, and every output is wanted in binary."""
    check_raw(len(body), face.spec)
    size: Parameters = {"binary_data_size": len(body)}
    shape = [1, *face.input.shape]
    given = Input(name=face.input.name, datatype="FP32", shape=shape, parameters=size)
    return InferRequest(inputs=[given], parameters={"binary_data_output": True})


def _header(face: ModelEndpoint, given: InferRequest, how: Sampling | None) -> dict[str, Any]:
    header: dict[str, Any] = {"model_name": face.name, "model_version": face.served.version}
    if given.id is not None:
        header["id"] = str(given.id)
    if how is not None:
        header["parameters"] = told(how)
    return header


def _within(given: InferRequest) -> float | None:
    """Read how long the client waits, microseconds there, seconds here; 0 is for ever."""
    timeout = given.parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InvalidQueryError("Parameter 'timeout' is a number of microseconds, 0 or more.")
    return timeout / 1e6 if timeout else None


def _check_outputs(given: InferRequest, face: ModelEndpoint) -> None:
    """Refuse what cannot be answered before the network runs."""
    if not given.outputs:
        return
    datatypes = {each.name: each.datatype for each in face.outputs}
    for output in given.outputs:
        if output.name not in datatypes:
            raise InvalidTensorError(
                f"There is no output {output.name!r}; there is {', '.join(datatypes)}."
            )
        if any(name.startswith(_SHARED) for name in output.parameters):
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


def _with_classes(outputs: list[Tensor], given: InferRequest, face: ModelEndpoint) -> list[Tensor]:
    if not given.outputs:
        return outputs
    class_names = face.served.bundle.manifest.class_names
    counts = {
        output.name: count
        for output in given.outputs
        if (count := output.parameters.get("classification"))
    }
    return [
        classified(tensor, int(counts[tensor.name]), class_names)
        if tensor.name in counts
        else tensor
        for tensor in outputs
    ]


def _response(
    described: dict[str, Any],
    outputs: list[Tensor],
    given: InferRequest,
    face: ModelEndpoint,
    accept_encoding: str | None,
) -> Answer:
    payload, json_length = write_response(described, _with_classes(outputs, given, face), given)
    headers = []
    if json_length is not None:
        headers.append((_LENGTH_HEADER, b"%d" % json_length))
    packing = packer(accept_encoding) if accept_encoding else None
    if packing is not None:
        encoding, pack = packing
        headers += [(b"content-encoding", encoding.encode()), (b"vary", b"Accept-Encoding")]
        payload = pack(payload)
    return Answer(payload, _JSON if json_length is None else _BINARY, headers)
