"""The validated options of `python -m training` and of `python -m training.evaluate`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

import os
from pathlib import Path
from typing import Any, Literal, Self

import pooch
from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.bundle.network_architecture import ActivationName, PresetName
from model.bundle.store import check_name
from model.cli_and_env_settings import CommandSettings

DATA_SETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar-10")
FOLDER_PREFIX = "folder:"

Augmentation = Literal["none", "shift", "affine", "flip-crop"]
Resize = Literal["crop", "pad", "stretch"]

_OOD_ALIAS = "strangers"
"""The former name of the evaluation option `ood`; it still works."""


def data_dir_from_environment() -> Path | None:
    """Return the folder that the variable DROPSERVE_DATA_DIR names, or None if it is unset."""
    value = os.environ.get("DROPSERVE_DATA_DIR")
    return Path(value) if value else None


def check_data_name(data: str) -> str:
    """Return `data` unchanged if it names a known data set or `folder:` and a folder that exists.

    Raises:
        ValueError: it names neither.
    """
    if data.startswith(FOLDER_PREFIX):
        folder = Path(data.removeprefix(FOLDER_PREFIX))
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; name one that exists.")
    elif data not in DATA_SETS:
        raise ValueError(
            f"{data!r} is not a data set; choose {', '.join(DATA_SETS)} or {FOLDER_PREFIX}PATH."
        )
    return data


def check_folder(folder: Path | None) -> Path | None:
    """Return `folder` unchanged if it is None or exists.

    Raises:
        ValueError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name one that exists or leave it out.")
    return folder


class TrainingConfig(CommandSettings):
    """Train a ReLU + dropout image classifier and export it as a bundle that can be served."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_TRAINING_", cli_prog_name="python -m training"
    )

    data: str = Field(
        "digits",
        description=f"data set: {', '.join(DATA_SETS)}, or {FOLDER_PREFIX}PATH with one sub-folder "
        "of images a class",
    )
    preset: PresetName = Field("cnn", description="network")
    activation: ActivationName = Field("relu", description="activation function")
    negative_slope: float = Field(
        0.01, ge=0, lt=1, description="slope of leaky_relu below zero, 0..1"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="probability of zeroing, 0..1")
    dropout_samples: int | None = Field(
        None,
        ge=1,
        le=64,
        description="thinned heads a training step averages; default by preset",
    )
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="passes over the training images; default by data set"
    )
    batch_size: int | None = Field(
        None, ge=2, le=65_536, description="images a step; default by data set"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="peak of AdamW's one-cycle schedule; default by preset"
    )
    weight_decay: float = Field(0.05, ge=0, le=10, description="decoupled weight decay of AdamW")
    max_norm: float | None = Field(
        None, gt=0, description="longest L2 norm of a hidden unit's incoming weights; default: any"
    )
    weight_averaging: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the steps so far whose weights are averaged, 0..1; 0 for the last; "
        "default by data set",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a better validation loss before stopping early; default half "
        "of all",
    )
    augmentation: Augmentation | None = Field(
        None, description="random changes to training images; default by data set"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, order, dropout, changes")
    threads: int | None = Field(
        None, ge=1, le=1024, description="processor threads; default by data set, else one a core"
    )
    split_seed: int = Field(
        0, ge=0, lt=2**32, description="seed of the draw of validation and test images"
    )
    validation_share: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="share drawn for validation; default 1/12 of mnist's, "
        "fashion-mnist's and kmnist's training images, else 0.1",
    )
    test_share: float = Field(
        0.2, gt=0, lt=0.5, description="share drawn for the test where the data set has none"
    )
    image_size: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="height and width in pixels; by data set, 64 for a folder",
    )
    colour: Literal["grey", "rgb"] | None = Field(
        None, description="what images are turned into; default by data set, folder rgb"
    )
    resize: Resize | None = Field(
        None, description="how images of another size are fitted; default by data set, folder crop"
    )
    name: str | None = Field(None, description="model name; default: the data set's")
    output: Path = Field(Path("models"), description="folder that bundles are written to")
    runs: Path = Field(Path("runs"), description="folder for logs and checkpoints")
    data_dir: Path | None = Field(
        default_factory=data_dir_from_environment,
        description="folder with data sets already on disk, also from DROPSERVE_DATA_DIR",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(pooch.os_cache("dropserve")),
        description="folder for downloads and for decoded images that do not fit into memory",
    )
    max_memory_gib: float = Field(
        4.0, gt=0, description="GiB of decoded images kept in memory; more are kept on disk"
    )
    prune_dead: bool = Field(
        False,
        description="leave units out of the export that fire on no training or validation image",
    )
    quantize: bool = Field(
        False, description="put the convolutions into 8-bit integers, if the answers stay as good"
    )
    resume: bool = Field(False, description="continue the last, interrupted run of this name")
    unless_exists: bool = Field(
        False, description="do nothing if the output folder already has a bundle, of any name"
    )

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        return check_data_name(data)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, folder: Path | None) -> Path | None:
        return check_folder(folder)

    @model_validator(mode="after")
    def _check_default_name(self) -> Self:
        if self.name is None:
            try:
                check_name(self.model_name)
            except ValueError:
                raise ValueError(
                    f"--name: {self.model_name!r} cannot name a model; give one with --name."
                ) from None
        return self

    @model_validator(mode="after")
    def _check_pruning(self) -> Self:
        if self.prune_dead and self.activation != "relu":
            raise ValueError(
                "--prune-dead needs --activation relu: the others' silent units still give "
                "something else than 0."
            )
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> Self:
        if self.quantize and (self.preset, self.activation) != ("cnn", "relu"):
            raise ValueError(
                "--quantize needs --preset cnn and --activation relu: integers would not speed up "
                "the others."
            )
        return self

    @property
    def model_name(self) -> str:
        """The name of the bundle: `name`, or the name of the data set."""
        if self.name is not None:
            return self.name
        if self.data.startswith(FOLDER_PREFIX):
            return Path(self.data.removeprefix(FOLDER_PREFIX)).resolve().name
        return self.data

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the preset's default, which is higher for normalised layers."""
        if self.learning_rate is not None:
            return self.learning_rate
        return {"cnn": 6e-3, "mlp": 1e-3, "alexnet": 3e-4}[self.preset]

    @property
    def heads_per_step(self) -> int:
        """`dropout_samples`, or the preset's default: 1 where the head is large and so slow."""
        return self.dropout_samples or {"cnn": 8, "mlp": 8, "alexnet": 1}[self.preset]

    @property
    def channels(self) -> Literal[1, 3] | None:
        """1 for grey, 3 for RGB, None for the channels of the data set."""
        if self.colour is None:
            return None
        return 1 if self.colour == "grey" else 3

    def recorded_options(self) -> dict[str, object]:
        """Return the options that determine the weights.

        The manifest records them, and a resumed run must have the same ones.
        """
        locations = {"output", "runs", "data_dir", "cache_dir", "max_memory_gib", "config"}
        not_training = {"resume", "unless_exists", "name", "quantize"}
        return self.model_dump(mode="json", exclude=locations | not_training)


class EvaluationConfig(CommandSettings):
    """Measure a bundle: accuracy, calibration, selective prediction, OOD detection; as HTML."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_EVALUATION_",
        env_prefix_target="all",  # the prefix also stands before an alias
        cli_prog_name="python -m training.evaluate",
    )

    bundle: CliPositionalArg[Path] = Field(description="folder of one version, models/NAME/VERSION")
    data: str | None = Field(
        None,
        description=f"data set whose test images are used: {', '.join(DATA_SETS)}, or "
        f"{FOLDER_PREFIX}PATH; default: what the bundle was trained on",
    )
    ood: str | None = Field(
        None,
        validation_alias=AliasChoices("ood", _OOD_ALIAS),
        description="data set of other classes, whose test images are out of distribution",
    )
    output: Path = Field(
        Path("runs/evaluations"), description="folder for the report, in NAME-VERSION"
    )
    data_dir: Path | None = Field(
        default_factory=data_dir_from_environment,
        description="folder with data sets already on disk, also from DROPSERVE_DATA_DIR",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(pooch.os_cache("dropserve")),
        description="folder for downloads",
    )

    @model_validator(mode="before")
    @classmethod
    def _flag_wins_over_alias_in_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Drop the alias that a TOML file sets where a flag or a variable has set `ood`."""
        if "ood" in values:
            values.pop(_OOD_ALIAS, None)
        return values

    @field_validator("data", "ood")
    @classmethod
    def _check_data(cls, data: str | None) -> str | None:
        return None if data is None else check_data_name(data)

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, folder: Path | None) -> Path | None:
        return check_folder(folder)
