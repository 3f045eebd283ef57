"""The settings of the service, with units and defaults. Importing it reads no environment."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from model.bundle.store import check_name
from model.cli_and_env_settings import CommandSettings
from model.dropout.masks import MAX_SAMPLES, MAX_SEED
from model.graphs.execution_provider import ProviderName
from service.edge.allowed_hosts import parse_hosts
from service.edge.cors_origins import parse_origins
from service.edge.trusted_proxies import Network, parse_networks, parse_prefix
from service.label_studio_url import LabelStudioUrl, parse_label_studio
from service.source_url import SourceUrl, parse_source
from service.tls.certificate_files import TlsFiles

LEAST_FEEDBACK_BYTES = 2**22
_PREFIX = "DROPSERVE_"
FIRST_SEGMENTS = (
    *("docs", "feedback", "health", "label-studio", "metrics", "models", "occlusion"),
    *("openapi.json", "predict", "redoc", "ui", "uncertainty", "v1", "v2"),
)
"""How the paths of the service's own routes begin. A root path may not begin so, too."""


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


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    """Return what keeps a text as it is, unless `parse` raises ValueError for it."""

    def check(text: str | None) -> str | None:
        if text is not None:
            parse(text)
        return text

    return AfterValidator(check)


class ServiceSettings(CommandSettings):
    """Serve predictions of the bundles in a folder, with their uncertainty, over HTTP."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, cli_prog_name="python -m service")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 takes a free one")
    root_path: str | None = Field(
        None,
        description="path prefix under which a proxy publishes the service, such as /dropserve; "
        "requests are answered with it and without it",
    )
    trusted_proxies: Annotated[str | None, _checked(parse_networks)] = Field(
        None,
        description="addresses and networks of the proxies whose headers Forwarded and "
        "X-Forwarded-… are believed, with commas between; nobody's if left out",
    )
    allowed_hosts: Annotated[str | None, _checked(parse_hosts)] = Field(
        None,
        description="names and addresses by which clients may call the service, such as "
        "example.org or *.example.org, with commas between; requests to other hosts are refused "
        "(421); any if left out",
    )
    cors_origins: Annotated[str | None, _checked(parse_origins)] = Field(
        None,
        description="origins whose pages may send requests and read the answers, such as "
        "https://example.org, with commas between, or * for any; the service's own if left out",
    )
    client_requests_per_second: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="requests that each client, a key or else an address, may send a second in the "
        "long run, to all workers together; further ones are refused (429); any if left out",
    )
    client_images_per_second: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="images that each client may have predicted a second in the long run, counted "
        "as requests are; any if left out",
    )
    client_burst_seconds: float = Field(
        10,
        gt=0,
        le=86_400,
        description="a client that has rested may send as much at once as these limits permit in "
        "this time, seconds",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file of the keys that clients need, made with python -m service.keys; no "
        "client needs one if left out",
    )
    auth: bool = Field(
        True,
        description="whether clients should need keys; --no-auth: they need none, also where other "
        "machines reach the port, and the service does not warn of it",
    )
    tls_certificate: Path | None = Field(
        None,
        description="file of the certificate, and of those between it and the root, in PEM; the "
        "port takes https alone, and http alone if left out",
    )
    tls_key: Path | None = Field(
        None, description="file of the certificate's private key, in PEM, without a password"
    )
    tls_client_ca: Path | None = Field(
        None,
        description="file of CA certificates in PEM: every client needs a certificate of one of "
        "them; none needs one if left out",
    )
    workers: int = Field(1, ge=1, le=256, description="processes that share the port")
    threads: int = Field(1, ge=1, le=256, description="threads of one inference run, each worker")
    provider: ProviderName = Field(
        "cpu",
        description="what computes a network up to its dropout: cpu, or cuda, an NVIDIA GPU, which "
        "needs the package onnxruntime-gpu in the place of onnxruntime",
    )
    models_folder: Path = Field(Path("models"), description="folder of bundles, NAME/VERSION/")
    models_source: Annotated[str | None, _checked(parse_source)] = Field(
        None,
        repr=False,
        description="where bundles are published, NAME/VERSION/, and fetched from into the cache: "
        "s3://, gs://, az:// or https://; they are in the models folder if left out",
    )
    models_cache: Path | None = Field(
        None,
        description="folder that bundles are fetched into, and served from; the models folder's "
        "name and -cache, beside it, if left out",
    )
    models_source_seconds: float = Field(
        60,
        ge=1,
        allow_inf_nan=False,
        description="how often the models source is asked for versions, seconds",
    )
    models_source_versions: int = Field(
        2,
        ge=1,
        le=1000,
        description="how many versions of each model are fetched and kept, from the newest on; "
        "those that --models or a rollout names are fetched, too",
    )
    models_source_max_bytes: int = Field(
        4 * 2**30,
        ge=1,
        description="most bytes of a version at the models source; a larger one is not fetched",
    )
    models: Annotated[str | None, _checked(_parse_pins)] = Field(
        None,
        description="models to serve, NAME or NAME@VERSION, with commas between; all if left out",
    )
    served_model_name: str | None = Field(
        None,
        description="name of the only model, whatever its bundle says; the models folder is then "
        "that of this one model: a bundle, or its versions, VERSION/",
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
        description="where rollouts and unloads are stored, also for replicas on other hosts; if "
        "left out, a restart forgets them",
    )
    rollouts: Path | None = Field(
        None,
        description="JSON file that says which versions serve, and is followed when it changes; "
        "commands that would change them are refused",
    )
    drift_level: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="largest probability that the drift alarm of a version is ever raised by "
        "images like its validation images",
    )
    traffic_log: Path | None = Field(
        None,
        description="folder of the traffic log, a line for each image that is answered; none if "
        "left out",
    )
    traffic_log_images: bool = Field(
        False, description="with --traffic-log: store the images, too, as files by their digests"
    )
    traffic_log_max_bytes: int = Field(
        2**30,
        ge=2**21,
        description="most bytes of the traffic log, images included; the oldest are removed",
    )
    traffic_log_segment_bytes: int = Field(
        16 * 2**20,
        ge=2**20,
        description="size at which a worker begins a new segment of the traffic log, bytes",
    )
    traffic_log_segment_seconds: float = Field(
        3600,
        gt=0,
        allow_inf_nan=False,
        description="age at which a worker begins a new segment of the traffic log, seconds",
    )
    feedback: Path | None = Field(
        None,
        description="SQLite file of true labels, which POST /feedback takes then; none are taken "
        "if left out",
    )
    feedback_max_bytes: int = Field(
        2**30,
        ge=LEAST_FEEDBACK_BYTES,
        description="most bytes of the file of feedback, kept images included; the oldest answers "
        "are forgotten, and no labels: further ones are refused (507)",
    )
    feedback_max_answers: int = Field(
        100_000,
        ge=1,
        description="requests whose answers are remembered until their true labels arrive; the "
        "oldest are forgotten",
    )
    feedback_alarm_rate: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="largest probability that the alarm of a version for a broken promise is ever "
        "raised while its risk and coverage are kept",
    )
    label_studio: Annotated[str | None, _checked(parse_label_studio)] = Field(
        None,
        description="address of a Label Studio that the service predicts for: its files alone are "
        "fetched; there is none if left out",
    )
    label_studio_token_file: Path | None = Field(
        None,
        description="file of a token of a Label Studio user, which is sent to fetch the images of "
        "tasks; none is sent if left out",
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
        allow_inf_nan=False,
        description="longest time a client may take to send a request's path and headers, seconds",
    )
    write_timeout_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="longest time a client may leave its answer unread, seconds",
    )
    body_timeout_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="longest time a client may take to send its body, seconds",
    )
    decode_timeout_seconds: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="most processor time to read one large body or its images, seconds",
    )
    decode_processes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="most processes that read large bodies and images, each worker; by the "
        "processors if left out",
    )
    inference_timeout_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="longest wait for an answer, queue included, seconds",
    )
    keep_alive_seconds: int = Field(
        75, ge=0, description="how long an idle connection is kept, seconds"
    )
    drain_delay: float = Field(
        0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="how many seconds requests are still accepted after SIGTERM, while the service "
        "says that it is not ready",
    )
    grace_seconds: int = Field(
        20,
        ge=0,
        description="longest time to finish requests in flight after SIGTERM and the drain delay, "
        "seconds",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line to write"
    )
    log_format: Literal["console", "json"] = Field("console", description="form of log lines")

    @property
    def pins(self) -> dict[str, int | None]:
        """The models to serve, each with its pinned version or None; empty for all models."""
        return _parse_pins(self.models or "")

    @property
    def source_url(self) -> SourceUrl | None:
        """Where bundles are fetched from; None if they are in the models folder."""
        return None if self.models_source is None else parse_source(self.models_source)

    @property
    def label_studio_url(self) -> LabelStudioUrl | None:
        """The Label Studio that the service pre-annotates for; None if there is none."""
        return None if self.label_studio is None else parse_label_studio(self.label_studio)

    @property
    def bundles_folder(self) -> Path:
        """The folder that bundles are served from: the cache of the source, or else its own."""
        if self.models_source is None:
            return self.models_folder
        folder = self.models_folder.absolute()
        return self.models_cache or folder.with_name(f"{folder.name}-cache")

    @property
    def limits_client_rates(self) -> bool:
        """Whether what each client sends a second is limited."""
        rates = self.client_requests_per_second, self.client_images_per_second
        return any(rate is not None for rate in rates)

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files of the certificate; None for plain HTTP."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """The networks of `trusted_proxies`."""
        return parse_networks(self.trusted_proxies or "")

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if host in ("", "[]"):  # a socket would take it for every address
            raise ValueError("it names no address; write one, or 0.0.0.0 for all.")
        return host

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, root_path: str | None) -> str | None:
        prefix = parse_prefix(root_path or "")
        first = prefix[1:].partition("/")[0]
        if first in FIRST_SEGMENTS:
            raise ValueError(
                f"the service has routes of its own below /{first}, which could not be told from "
                "the prefix; choose another."
            )
        return prefix or None

    @field_validator("served_model_name")
    @classmethod
    def _check_served_model_name(cls, served_model_name: str | None) -> str | None:
        return None if served_model_name is None else check_name(served_model_name)

    @model_validator(mode="before")
    @classmethod
    def _make_served_model_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("default_model") is None:
            return values | {"default_model": values.get("served_model_name")}
        return values

    @model_validator(mode="after")
    def _check_served_model_is_the_only_one(self) -> Self:
        if self.served_model_name is None:
            return self
        name = self.served_model_name
        others = [each for each in (self.default_model, *self.pins) if each != name]
        if self.default_model != name or (self.pins and name not in self.pins):
            raise ValueError(
                f"--served-model-name: {name!r} is the only model then, so there is no "
                f"{others[0]!r}; leave that out of --models and --default-model."
            )
        return self

    @model_validator(mode="after")
    def _check_source_can_be_served(self) -> Self:
        if self.models_source is None:
            if self.models_cache is not None:
                raise ValueError("--models-cache: it is of a source; give --models-source, too.")
            return self
        if self.watch_seconds == 0:
            raise ValueError(
                "--watch-seconds: with 0 nothing that --models-source fetches is found; raise it."
            )
        return self

    @model_validator(mode="after")
    def _check_label_studio_token(self) -> Self:
        if self.label_studio_token_file is not None and self.label_studio is None:
            raise ValueError(
                "--label-studio-token-file: it is sent to a Label Studio; give --label-studio, too."
            )
        return self

    @model_validator(mode="after")
    def _check_default_samples(self) -> Self:
        if self.default_samples > self.max_samples:
            raise ValueError(
                f"--default-samples: {self.default_samples} is more than --max-samples, "
                f"{self.max_samples}; lower the one or raise the other."
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("--tls-key: it needs its certificate; give --tls-certificate, too.")
        if self.tls_certificate is not None and self.tls_key is None:
            raise ValueError("--tls-certificate: it needs its private key; give --tls-key, too.")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(
                "--tls-client-ca: clients show certificates in TLS alone; give --tls-certificate "
                "and --tls-key, too."
            )
        return self

    @model_validator(mode="after")
    def _check_traffic_log(self) -> Self:
        least = (self.workers + 1) * self.traffic_log_segment_bytes
        if self.traffic_log is not None and self.traffic_log_max_bytes < least:
            raise ValueError(
                f"--traffic-log-max-bytes: {self.traffic_log_max_bytes} is less than {least}, one "
                "segment for each worker and one more; raise it, or lower "
                "--traffic-log-segment-bytes."
            )
        return self

    def to_environment(self) -> None:
        """Write the settings into this process's environment, where its workers read them."""
        for name, value in self.model_dump(mode="json").items():
            if value is not None and name != "config":
                os.environ[_PREFIX + name.upper()] = str(value)
