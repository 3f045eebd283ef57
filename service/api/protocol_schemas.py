"""What /v1 and /v2 answer: the shapes that the OpenAPI description shows. Knows no numerics.

Requests to /v2 are described by `service.codecs.tensors`, which reads them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.codecs.tensors import Datatype, Parameters

_BATCH = -1


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ServerMetadata(_Shape):
    """The answer of GET /v2."""

    name: Literal["dropserve"]
    version: str
    extensions: list[str]


class ModelReady(_Shape):
    """The answer of GET /v2/models/{name}/ready when it is 200."""

    name: str
    ready: Literal[True]


class Unready(_Shape):
    """The 503 of the protocol's health routes: an error that clients who read `ready` know too."""

    error: str
    code: str
    ready: Literal[False] | None = Field(None, description="left out by other errors")
    name: str | None = Field(None, description="of the model, where one was asked for")


class TensorMetadata(_Shape):
    """A tensor that a model takes or gives."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description=f"{_BATCH} stands for the number of images")


class ModelMetadata(_Shape):
    """The answer of GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfiguredTensor(_Shape):
    """A tensor in Triton's model configuration."""

    name: str
    data_type: str
    dims: list[int] = Field(description="without the number of images")


class ModelConfiguration(_Shape):
    """Triton's model configuration, as much of it as is true of this server."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, list[int]]]
    max_batch_size: int
    input: list[ConfiguredTensor]
    output: list[ConfiguredTensor]
    instance_group: list[dict[str, str | int]]
    default_model_filename: str
    dynamic_batching: dict[str, list[int]]
    parameters: dict[str, str]


class Duration(_Shape):
    """How often, and how long all together."""

    count: int = Field(ge=0)
    ns: int = Field(ge=0, description="nanoseconds")


class InferenceStatistics(_Shape):
    """Of a model's requests, by outcome and by part."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(_Shape):
    """One version of one model."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970; 0: never")
    inference_count: int = Field(description="images answered")
    execution_count: int = Field(description="runs of the network")
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any]
    batch_stats: list[Any]
    memory_usage: list[Any]


class Statistics(_Shape):
    """The answer of GET /v2/models/{name}/stats and GET /v2/models/stats."""

    model_stats: list[ModelStatistics]


class OutputTensor(_Shape):
    """One output of an answer; its values follow the JSON where it has no `data`."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters | None = Field(None, description="binary_data_size, where it is binary")
    data: list[float | str | None] | None = Field(
        None, description="null stands for NaN, where nothing is known"
    )


class InferResponse(_Shape):
    """The answer of POST /v2/models/{name}/infer; its JSON part, where tensors are binary."""

    id: str | None = Field(None, description="the request's, if it had one")
    model_name: str
    model_version: str
    parameters: Parameters | None = Field(None, description="how dropout was sampled")
    outputs: list[OutputTensor]


class IndexRequest(BaseModel):
    """The body of POST /v2/repository/index; it may be left out."""

    ready: bool = Field(False, description="true: only what is in service")


class IndexEntry(_Shape):
    """One version of one model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is unavailable, or nothing")


class UnloadRequest(BaseModel):
    """The body of POST /v2/repository/models/{name}/unload: any object, or nothing."""


class LoadRequest(BaseModel):
    """The body of POST /v2/repository/models/{name}/load; it may be left out."""

    parameters: dict[str, Any] | None = Field(
        None, description="those of other servers are passed over; `config` and `file:…` are 501"
    )


class RowModels(_Shape):
    """The answer of GET /v1/models."""

    models: list[str]


class VersionOutcome(_Shape):
    """Part of `VersionStatus`, as TensorFlow Serving has it."""

    error_code: Literal["OK"]
    error_message: str


class VersionStatus(_Shape):
    """One version in service."""

    version: str
    state: Literal["AVAILABLE"]
    status: VersionOutcome


class ModelStatus(_Shape):
    """The answer of GET /v1/models/{name}."""

    name: str
    ready: Literal[True]
    model_version_status: list[VersionStatus]


class RowPredictions(_Shape):
    """The answer of POST /v1/models/{name}:predict: each image's outputs by their names."""

    predictions: list[dict[str, str | float | list[float | None] | None]]
