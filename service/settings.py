"""The settings of the service, with units and defaults. Importing it reads no environment."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from model.bundle.store import check_name
from model.cli_and_env_settings import CommandSettings
from model.dropout.masks import MAX_SAMPLES, MAX_SEED

_PREFIX = "DROPSERVE_"


class ServiceSettings(CommandSettings):
    """Serve predictions of the bundles in a folder, with their uncertainty, over HTTP."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, cli_prog_name="python -m service")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 takes a free one")
    workers: int = Field(1, ge=1, le=256, description="processes that share the port")
    threads: int = Field(1, ge=1, le=256, description="threads of one inference run, each worker")
    models_folder: Path = Field(Path("models"), description="folder of bundles, NAME/VERSION/")
    models: str | None = Field(
        None,
        description="models to serve, NAME or NAME@VERSION, with commas between; all if left out",
    )
    watch_seconds: float = Field(
        1,
        ge=0,
        allow_inf_nan=False,
        description="how often the models folder is looked at, seconds; 0 for never",
    )
    load_timeout_seconds: float = Field(
        60,
        gt=0,
        allow_inf_nan=False,
        description="longest time to open, test and warm one version, seconds",
    )
    control: Literal["local", "anyone", "nobody"] = Field(
        "local",
        description="who may change which models and versions serve; local: who reaches the "
        "control listener, which is on this machine; anyone: whoever reaches the public port, too; "
        "nobody: nobody, there is no control listener",
    )
    control_socket: Path | None = Field(
        None,
        description="Unix socket of the control listener; one in the temporary folder, for this "
        "user alone, if left out",
    )
    control_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="TCP port of the control listener, on 127.0.0.1; 0 takes a free one; no "
        "socket is made then, unless one is named",
    )
    control_folder: Path | None = Field(
        None,
        description="where rollouts and unloads are stored; if left out, a restart forgets them",
    )
    drift_level: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="largest probability that the drift alarm of a version is ever raised by "
        "images like its validation images",
    )
    default_model: str | None = Field(
        None,
        description="model of requests that name none; if left out, the recorded default: the "
        "first model that was the only one in service",
    )
    default_samples: int = Field(
        64, ge=1, le=MAX_SAMPLES, description="dropout samples of requests that name no number"
    )
    default_seed: int = Field(
        0, ge=0, le=MAX_SEED, description="seed of the dropout masks of requests that name none"
    )
    uncertainty: bool = Field(True, description="offer POST /uncertainty")
    fast_path: bool = Field(
        True, description="answer short requests without ASGI: the same bytes, sooner"
    )
    max_samples: int = Field(
        1024, ge=1, le=MAX_SAMPLES, description="most dropout samples of a request"
    )
    max_images: int = Field(64, ge=1, le=65_536, description="most images of a request")
    max_body_bytes: int = Field(
        10 * 2**20, ge=1, le=2**31, description="largest request body, bytes"
    )
    max_image_pixels: int = Field(
        25_000_000, ge=1, description="most pixels of one encoded image, before resizing"
    )
    max_request_pixels: int = Field(
        50_000_000, ge=1, description="most pixels of all encoded images of a request together"
    )
    max_concurrent_requests: int = Field(
        256,
        ge=1,
        description="most requests in flight, each worker; further ones are refused (503)",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="connections at once, each worker, as far as file descriptors go; an idle one "
        "makes room for a new one",
    )
    max_buffered_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="bytes of arriving requests and unread answers at once, each worker",
    )
    max_batch_rows: int = Field(64, ge=1, description="most images of one inference run")
    max_queue_rows: int = Field(
        1024,
        ge=1,
        description="most images waiting for inference, each loaded version and worker; further "
        "requests are refused (503)",
    )
    head_timeout_seconds: float = Field(
        10,
        gt=0,
        description="longest time a client may take to send a request's path and headers, seconds",
    )
    write_timeout_seconds: float = Field(
        30, gt=0, description="longest time a client may leave its answer unread, seconds"
    )
    body_timeout_seconds: float = Field(
        30, gt=0, description="longest time a client may take to send its body, seconds"
    )
    decode_timeout_seconds: float = Field(
        5.0, gt=0, description="most processor time to read one large body or its images, seconds"
    )
    decode_processes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="most processes that read large bodies and images, each worker; by the "
        "processors if left out",
    )
    inference_timeout_seconds: float = Field(
        30, gt=0, description="longest wait for an answer, queue included, seconds"
    )
    keep_alive_seconds: int = Field(
        75, ge=0, description="how long an idle connection is kept, seconds"
    )
    grace_seconds: int = Field(
        20, ge=0, description="longest time to finish requests in flight after SIGTERM, seconds"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line to write"
    )
    log_format: Literal["console", "json"] = Field("console", description="form of log lines")

    @property
    def pins(self) -> dict[str, int | None]:
        """The models to serve, each with its pinned version or None; empty for all models."""
        return _parse_pins(self.models or "")

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: str | None) -> str | None:
        _parse_pins(models or "")
        return models

    @model_validator(mode="after")
    def _check_default_samples(self) -> Self:
        if self.default_samples > self.max_samples:
            raise ValueError(
                f"--default-samples: {self.default_samples} is more than --max-samples, "
                f"{self.max_samples}; lower the one or raise the other."
            )
        return self

    def to_environment(self) -> None:
        """Write the settings into this process's environment, where its workers read them."""
        for name, value in self.model_dump(mode="json").items():
            if value is not None and name != "config":
                os.environ[_PREFIX + name.upper()] = str(value)


def _parse_pins(models: str) -> dict[str, int | None]:
    pins: dict[str, int | None] = {}
    for item in filter(None, map(str.strip, models.split(","))):
        name, at, version = item.partition("@")
        check_name(name)
        if at and not (version.isascii() and version.isdecimal() and int(version)):
            raise ValueError(
                f"{item!r} holds no version; write NAME@VERSION with a whole number from 1."
            )
        if name in pins:
            raise ValueError(f"{name!r} is named twice; name it once.")
        pins[name] = int(version) if at else None
    return pins
