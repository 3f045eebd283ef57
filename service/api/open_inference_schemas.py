"""Pydantic schemas of /v1 and /v2 for the OpenAPI description. They validate no request.

The schema of inference requests to /v2 is in `service.codecs.infer_requests`, which parses them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.codecs.tensors import Datatype, Parameters

_BATCH = -1


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ServerMetadata(_Schema):
    """The response of GET /v2."""

    name: Literal["dropserve"]
    version: str
    extensions: list[str]


class ModelReady(_Schema):
    """The response of GET /v2/models/{name}/ready when its status is 200."""

    name: str
    ready: Literal[True]


class Unready(_Schema):
    """The 503 of the protocol's health routes: an error that also has the field `ready`."""

    error: str
    code: str
    ready: Literal[False] | None = Field(None, description="left out by other errors")
    name: str | None = Field(None, description="name of the model, in the answer for one model")


class TensorMetadata(_Schema):
    """An input or output tensor of a model."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description=f"{_BATCH} stands for the number of images")


class ModelMetadata(_Schema):
    """The response of GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfiguredTensor(_Schema):
    """A tensor in Triton's model configuration."""

    name: str
    data_type: str
    dims: list[int] = Field(description="without the number of images")


class ModelConfiguration(_Schema):
    """The fields of Triton's model configuration that apply to this server."""

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


class Duration(_Schema):
    """A number of events and their total duration."""

    count: int = Field(ge=0)
    ns: int = Field(ge=0, description="nanoseconds")


class InferenceStatistics(_Schema):
    """Durations of a model's requests, by outcome and by stage."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(_Schema):
    """Statistics of one version of one model."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970; 0: never")
    inference_count: int = Field(description="images answered")
    execution_count: int = Field(description="runs of the network")
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any]
    batch_stats: list[Any]
    memory_usage: list[Any]


class Statistics(_Schema):
    """The response of GET /v2/models/{name}/stats and GET /v2/models/stats."""

    model_stats: list[ModelStatistics]


class OutputTensor(_Schema):
    """An output tensor of a response; without `data`, its values follow the JSON as bytes."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters | None = Field(None, description="binary_data_size, where it is binary")
    data: list[float | str | bool | None] | None = Field(
        None, description="null stands for NaN, an unknown value"
    )


class InferResponse(_Schema):
    """The response of POST /v2/models/{name}/infer, or its JSON part where tensors are binary."""

    id: str | None = Field(None, description="the request's, if it had one")
    model_name: str
    model_version: str
    parameters: Parameters | None = Field(
        None, description="how dropout was sampled, and the limits of abstention"
    )
    outputs: list[OutputTensor]


class IndexRequest(BaseModel):
    """The body of POST /v2/repository/index; it may be left out."""

    ready: bool = Field(False, description="true: list only the active versions")


class IndexEntry(_Schema):
    """An entry of the repository index: one version of one model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is unavailable, or nothing")


class UnloadRequest(BaseModel):
    """The body of POST /v2/repository/models/{name}/unload: any object, or nothing."""


class LoadRequest(BaseModel):
    """The body of POST /v2/repository/models/{name}/load; it may be left out."""

    parameters: dict[str, Any] | None = Field(
        None, description="unknown parameters are ignored; `config` and `file:…` are answered 501"
    )


class RowModels(_Schema):
    """The response of GET /v1/models."""

    models: list[str]


class VersionOutcome(_Schema):
    """The nested status of a `VersionStatus`, as TensorFlow Serving defines it."""

    error_code: Literal["OK"]
    error_message: str


class VersionStatus(_Schema):
    """The status of an active version."""

    version: str
    state: Literal["AVAILABLE"]
    status: VersionOutcome


class ModelStatus(_Schema):
    """The response of GET /v1/models/{name}."""

    name: str
    ready: Literal[True]
    model_version_status: list[VersionStatus]


class RowPredictions(_Schema):
    """The response of POST /v1/models/{name}:predict: each image's outputs by name."""

    predictions: list[dict[str, str | float | bool | list[float | None] | None]]
