"""The settings of `python -m service.score`. Importing it reads no environment."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from model.cli_and_env_settings import CommandSettings, PathArguments
from model.dropout.masks import MAX_SAMPLES, MAX_SEED
from model.graphs.execution_provider import ProviderName
from model.uncertainty.calibration import DEFAULT_MAX_FALSE_ALARM
from model.uncertainty.prediction_sets import SetKind
from service.api.schemas import Method, OfferedDesign, UncertaintyQuery
from service.settings import ServiceSettings

SortField = Literal[
    "mutual_information",
    "predictive_entropy",
    "expected_entropy",
    "variation_ratio",
    "confidence",
    "typicality",
    "path",
]


class OutputFormat(StrEnum):
    """The formats of an output, by the suffix of its name."""

    CSV = ".csv"
    JSONL = ".jsonl"
    PARQUET = ".parquet"


def _service_default(name: str) -> Any:
    return ServiceSettings.model_fields[name].default


class ScoreSettings(CommandSettings):
    """Score many images without a server: one line for each, with its label and uncertainty."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_SCORE_", cli_prog_name="python -m service.score"
    )

    paths: PathArguments = Field(
        min_length=1,
        description="folders (with all folders in them), image files, patterns like 'a/**/*.jpg', "
        ".zip archives, and .csv tables of paths (column path, or the first one)",
    )
    output: Path = Field(
        description="file to write: .csv, .jsonl or .parquet; a run that was interrupted goes on "
        "after what is written"
    )
    model: str | None = Field(None, description="model; if left out, the only one in the folder")
    version: int | None = Field(
        None, ge=1, description="version; if left out, the highest one that passes its self-test"
    )
    models_folder: Path = Field(
        _service_default("models_folder"), description="folder of bundles, NAME/VERSION/"
    )
    samples: Literal["auto"] | int | None = Field(
        None,
        description="dropout samples T, or auto: as many as decide each label; 64 if left out",
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="seed of the dropout masks; 0 if left out"
    )
    method: Method = Field(
        "mc_dropout",
        description="mc_dropout draws samples; analytic integrates the distribution of the logits",
    )
    design: OfferedDesign | None = Field(
        None,
        description="how the masks depend on one another: orthogonal (if left out) or independent",
    )
    coverage: float = Field(
        UncertaintyQuery.model_fields["coverage"].default,
        gt=0,
        lt=1,
        description="probability with which a prediction set holds the true class",
    )
    sets: SetKind = Field("thr", description="kind of the prediction sets")
    max_risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="error rate to keep among the labels that are not abstained from; the model's "
        "if left out",
    )
    max_false_alarm: float = Field(
        DEFAULT_MAX_FALSE_ALARM,
        gt=0,
        lt=1,
        description="share of the images like the validation images that may count as unusual",
    )
    probabilities: bool = Field(False, description="write the probability of every class, too")
    sort: SortField | None = Field(
        None,
        description="order of the lines when all are written, what to look at first at the top: "
        "the highest uncertainty, the lowest confidence or typicality; errors come last",
    )
    processes: int | None = Field(
        None, ge=1, le=256, description="processes; one for each processor if left out"
    )
    threads: int = Field(1, ge=1, le=256, description="threads of one inference run, each process")
    provider: ProviderName = Field(
        "cpu", description="what computes a network up to its dropout, as of python -m service"
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=4096,
        description="most images that a process scores at once; fewer where they take seconds. "
        "No figure changes",
    )
    max_image_pixels: int = Field(
        _service_default("max_image_pixels"),
        ge=1,
        description="most pixels of an image, before resizing; a larger one is an error",
    )
    max_file_bytes: int = Field(
        _service_default("max_body_bytes"),
        ge=1,
        le=2**31,
        description="largest image file, bytes; a larger one is an error",
    )
    decode_timeout_seconds: float = Field(
        _service_default("decode_timeout_seconds"),
        gt=0,
        description="most processor time to decode an image, seconds",
    )
    retry_errors: bool = Field(
        False, description="score the images again that have an error in the output"
    )
    strict: bool = Field(
        False, description="exit with status 1 if an image in the output has an error"
    )

    @field_validator("output")
    @classmethod
    def _check_suffix(cls, output: Path) -> Path:
        if output.suffix.lower() not in tuple(OutputFormat):
            raise ValueError(
                f"{str(output)!r} names no format; end it in {', '.join(OutputFormat)}."
            )
        return output

    @field_validator("samples")
    @classmethod
    def _check_samples(cls, samples: str | int | None) -> str | int | None:
        if isinstance(samples, int) and not 1 <= samples <= MAX_SAMPLES:
            raise ValueError(f"{samples} is not between 1 and {MAX_SAMPLES}.")
        return samples

    @property
    def format(self) -> OutputFormat:
        """The format of the output."""
        return OutputFormat(self.output.suffix.lower())

    def for_process(self) -> dict[str, Any]:
        """Return the settings as JSON for a scoring process, which needs no path of them."""
        paths = {"paths": ["."], "models_folder": Path(), "config": None}
        output = Path("output").with_suffix(self.format)
        return self.model_copy(update=paths | {"output": output}).model_dump(mode="json")

    def query(self) -> UncertaintyQuery:
        """Return the request to POST /uncertainty that has the same figures.

        What a request alone has, such as `per_sample`, is as if it were left out.
        """
        names = UncertaintyQuery.model_fields.keys() & ScoreSettings.model_fields.keys()
        return UncertaintyQuery(**{name: getattr(self, name) for name in names - _BUNDLE_FIELDS})

    def service_settings(self, processes: int = 1) -> ServiceSettings:
        """Return the settings of a server that reads images within the same limits.

        processes: among which the memory for decoding is divided.
        """
        return ServiceSettings.model_construct(  # which reads no environment
            models_folder=self.models_folder,
            threads=self.threads,
            workers=processes,
            max_samples=MAX_SAMPLES if self.samples != "auto" else _service_default("max_samples"),
            max_images=self.batch_size,
            max_body_bytes=self.max_file_bytes,
            max_image_pixels=self.max_image_pixels,
            max_request_pixels=self.batch_size * self.max_image_pixels,
            decode_processes=1,
            decode_timeout_seconds=self.decode_timeout_seconds,
            inference_timeout_seconds=_NO_TIMEOUT_SECONDS,
        )


_BUNDLE_FIELDS = {"model", "version"}
_NO_TIMEOUT_SECONDS = 10.0**6
"""An image waits for the images before it, however long they take."""
