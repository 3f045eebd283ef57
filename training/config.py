"""The validated options of `python -m training` and of `python -m training.evaluate`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from model.bundle.architecture_description import ActivationName, PresetName
from model.bundle.example_images import MAX_EXAMPLES
from model.bundle.store import check_name
from model.cli_and_env_settings import CommandSettings
from training.cache_folders import default_cache_folder

DATA_SETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar-10")
FOLDER_PREFIX = "folder:"

Augmentation = Literal["none", "shift", "affine", "flip-crop", "photographs"]
Resize = Literal["crop", "pad", "stretch"]
Duplicates = Literal["remove", "keep"]
ClassWeights = Literal["none", "balanced"]

DuplicatesOfFolder = Annotated[
    Duplicates,
    Field(
        description="what becomes of a folder's training images whose picture the validation or "
        "test images have, too",
    ),
]
MaxImageMegapixels = Annotated[
    float,
    Field(
        gt=0,
        le=1000,
        description="largest image of a folder; larger ones are left out, as are files of more "
        "than 256 MiB and of more than 4 bytes for each of so many pixels",
    ),
]
DEFAULT_MAX_IMAGE_MEGAPIXELS = 250.0

Examples = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_EXAMPLES,
        description="validation images that the bundle carries as thumbnails, and that its service "
        "shows to every client; 0 for none, and for a report without pictures",
    ),
]
DEFAULT_EXAMPLES = 8


def _decode_numbers(value: Any) -> Any:
    """Return a list of the numbers in a text with commas, and of a single number."""
    if isinstance(value, str):
        return value.strip("[]").split(",")
    return [value] if isinstance(value, int | float) else value


Numbers = Annotated[list[FiniteFloat], NoDecode, BeforeValidator(_decode_numbers)]
"""Type of an option that is one number or several with commas between, as in `0.5` or `.4,.5,.6`.

Without `NoDecode`, each would have to be a number of JSON, which `.5` is not."""


def _decode_whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


PixelMaximum = Annotated[Literal[1, 255], BeforeValidator(_decode_whole_number)]

EFFICIENTNET_LITE0: Literal["efficientnet-lite0"] = "efficientnet-lite0"
ONNX_BACKBONE: Literal["onnx"] = "onnx"
"""What the manifest calls the network of an ONNX file."""
NO_BACKBONE = "none"
Learning = Literal["frozen", "fine-tuned"]
MIN_BACKBONE_SIZE = 96
"""Least height and width of images for a backbone; on smaller ones its last maps are 2 x 2."""

_OOD_ALIAS = "strangers"
"""The former name of the evaluation option `ood`; it still works."""


def data_dir_from_environment() -> Path | None:
    """Return the folder that the variable DROPSERVE_DATA_DIR names, or None if it is unset."""
    value = os.environ.get("DROPSERVE_DATA_DIR")
    return Path(value) if value else None


def check_data_name(data: str) -> str:
    """Return `data` if it names a known data set, or `folder:` and a folder that exists.

    A `~` at the start of the folder becomes the user's home.

    Raises:
        ValueError: it names neither.
    """
    if data.startswith(FOLDER_PREFIX):
        return FOLDER_PREFIX + str(_existing_folder(data.removeprefix(FOLDER_PREFIX)))
    if data not in DATA_SETS:
        raise ValueError(
            f"{data!r} is not a data set; choose {', '.join(DATA_SETS)} or {FOLDER_PREFIX}PATH."
        )
    return data


def _existing_folder(name: str) -> Path:
    if not name:
        raise ValueError(f"{FOLDER_PREFIX} names no folder; write {FOLDER_PREFIX}PATH.")
    try:
        folder = Path(name).expanduser()
        exists = folder.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such home
        raise ValueError(f"the folder {name} cannot be used ({error}); name another.") from None
    if not exists:
        raise ValueError(f"there is no folder {folder}; name one that exists.")
    return folder


def check_folder(folder: Path | None) -> Path | None:
    """Return `folder` unchanged if it is None or exists.

    Raises:
        ValueError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name one that exists or leave it out.")
    return folder


class DataFolders(CommandSettings):
    """Where the images of a command are read from, and where downloads are kept."""

    data_dir: Path | None = Field(
        default_factory=data_dir_from_environment,
        description="folder with data sets already on disk, also from DROPSERVE_DATA_DIR",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_folder,
        description="folder for downloads and for decoded images that do not fit into memory",
    )

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, folder: Path | None) -> Path | None:
        return check_folder(folder)


class PixelOptions(DataFolders):
    """How pixels become the numbers that a network from a file takes."""

    mean: Numbers | None = Field(
        None,
        description="subtracted from pixels, one number or one a channel, with --std; default: a "
        "guess, of the usual rules the one with the lowest loss on the images",
    )
    std: Numbers | None = Field(
        None, description="what they are divided by then, 1 for nothing; default as for the mean"
    )
    pixel_maximum: PixelMaximum | None = Field(
        None,
        description="what white is before the mean is subtracted, 1 or 255; default: 255 if a mean "
        "or deviation is above 1, or the network takes 8-bit pixels",
    )
    layout: Literal["nchw", "nhwc"] | None = Field(
        None, description="nchw or nhwc, where the network does not tell"
    )

    @field_validator("mean", "std")
    @classmethod
    def _check_numbers(cls, numbers: list[float] | None) -> list[float] | None:
        if numbers is not None and len(numbers) not in (1, 3):
            raise ValueError(f"give one number or three, not {len(numbers)}.")
        return numbers

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: list[float] | None) -> list[float] | None:
        if std is not None and min(std) <= 0:
            raise ValueError("a deviation must be above 0.")
        return std

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if (self.mean is None) != (self.std is None):
            given, other, nothing = ("std", "mean", 0) if self.mean is None else ("mean", "std", 1)
            raise ValueError(
                f"--{given} without --{other} states only half of how pixels become numbers; give "
                f"both, --{other} {nothing} where the network was trained without."
            )
        return self


class TrainingConfig(PixelOptions):
    """Train a ReLU + dropout image classifier and export it as a bundle that can be served."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_TRAINING_", cli_prog_name="python -m training"
    )

    data: str = Field(
        "digits",
        description=f"data set: {', '.join(DATA_SETS)}, or {FOLDER_PREFIX}PATH with one sub-folder "
        "of images a class",
    )
    add: str | None = Field(
        None,
        description=f"{FOLDER_PREFIX}PATH with one sub-folder of images a class, which are trained "
        "on too, and never validated or tested on",
    )
    compare_with: Path | None = Field(
        None,
        description="bundle, models/NAME/VERSION, to measure on the same test images: the report "
        "says what is better since",
    )
    backbone: str | None = Field(
        None,
        description=f"pretrained network for photographs: {EFFICIENTNET_LITE0}, a .pth or "
        ".safetensors file with weights of it, an .onnx file of any network, or "
        f"{NO_BACKBONE}; default for a folder: {EFFICIENTNET_LITE0} where its package is installed",
    )
    learn: Learning | None = Field(
        None,
        description="frozen: the backbone stays as it is, and only a head is trained; fine-tuned: "
        "all weights are; default frozen, and fine-tuned where there is a GPU",
    )
    head_layers: Literal[1, 2] = Field(
        1, description="dense layers behind a backbone, each after dropout"
    )
    preset: PresetName = Field("cnn", description="network that is trained from scratch")
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
    devices: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="processes on this machine that train together, one a GPU where there are any; "
        "default 1, or what torchrun started",
    )
    nodes: int = Field(
        1, ge=1, le=1024, description="machines that train together, each with that many processes"
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
        description="height and width in pixels; by data set, 64 for a folder, 224 with a backbone",
    )
    colour: Literal["grey", "rgb", "bgr"] | None = Field(
        None,
        description="what images are turned into; bgr: rgb, of which an .onnx backbone takes blue "
        "first; default by data set, folder rgb",
    )
    resize: Resize | None = Field(
        None, description="how images of another size are fitted; default by data set, folder crop"
    )
    max_image_megapixels: MaxImageMegapixels = DEFAULT_MAX_IMAGE_MEGAPIXELS
    duplicates: DuplicatesOfFolder = "remove"
    class_weights: ClassWeights = Field(
        "none",
        description="what an image counts in the loss: the same, or the less the larger its class",
    )
    name: str | None = Field(None, description="model name; default: the data set's")
    output: Path = Field(Path("models"), description="folder that bundles are written to")
    runs: Path = Field(Path("runs"), description="folder for logs and checkpoints")
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
    examples: Examples = DEFAULT_EXAMPLES
    resume: bool = Field(False, description="continue the last, interrupted run of this name")
    unless_exists: bool = Field(
        False, description="do nothing if the output folder already has a bundle, of any name"
    )

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        return check_data_name(data)

    @field_validator("add")
    @classmethod
    def _check_added(cls, add: str | None) -> str | None:
        if add is None:
            return None
        if not add.startswith(FOLDER_PREFIX):
            raise ValueError(f"{add!r} is no folder; write {FOLDER_PREFIX}PATH.")
        return check_data_name(add)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

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

    @model_validator(mode="after")
    def _check_backbone(self) -> Self:
        if self.backbone in (None, NO_BACKBONE):
            if self.learn is not None and self.backbone == NO_BACKBONE:
                raise ValueError("--learn needs a --backbone; leave one of the two out.")
            return self
        own = not self.has_onnx_backbone
        refused = {
            f"--data {FOLDER_PREFIX}PATH: it knows photographs": not self.is_folder,
            "--colour rgb: it sees colours": own and self.colour == "grey",
            f"--image-size of {MIN_BACKBONE_SIZE} or more": (
                own and self.image_size is not None and self.image_size < MIN_BACKBONE_SIZE
            ),
            "no --learn fine-tuned: an ONNX file is not trained": (
                not own and self.learn == "fine-tuned"
            ),
            "--activation relu: its weights belong to it": self.activation != "relu",
            "no --quantize: only networks from scratch are put into integers": self.quantize,
            "no --prune-dead: its own layers are not pruned": self.prune_dead,
        }
        for need, is_missing in refused.items():
            if is_missing:
                raise ValueError(
                    f"--backbone needs {need}; or train from scratch with --backbone {NO_BACKBONE}."
                )
        return self

    @model_validator(mode="after")
    def _check_pixel_options(self) -> Self:
        given = [name for name in PixelOptions.model_fields if name not in DataFolders.model_fields]
        flags = [f"--{name.replace('_', '-')}" for name in given if getattr(self, name) is not None]
        if self.colour == "bgr":
            flags.append("--colour bgr")
        if flags and not self.has_onnx_backbone:
            raise ValueError(
                f"{', '.join(flags)}: only a --backbone that is an .onnx file is told how it takes "
                "pixels; leave that out."
            )
        return self

    @property
    def is_folder(self) -> bool:
        """Whether the data set is a folder of image files."""
        return self.data.startswith(FOLDER_PREFIX)

    @property
    def has_backbone(self) -> bool:
        """Whether the trunk is a pretrained network."""
        return self.backbone not in (None, NO_BACKBONE)

    @property
    def has_onnx_backbone(self) -> bool:
        """Whether the trunk is the network of an ONNX file."""
        return self.backbone is not None and Path(self.backbone).suffix.lower() == ".onnx"

    @property
    def is_frozen(self) -> bool:
        """Whether only a head is trained, on the features of a pretrained network."""
        return self.has_backbone and self.learn == "frozen"

    @property
    def model_name(self) -> str:
        """The name of the bundle: `name`, or the name of the data set."""
        if self.name is not None:
            return self.name
        if self.data.startswith(FOLDER_PREFIX):
            return Path(self.data.removeprefix(FOLDER_PREFIX)).resolve().name
        return self.data

    @property
    def process_count(self) -> int:
        """How many processes train together, on all machines."""
        return (self.devices or 1) * self.nodes

    @property
    def max_pixels(self) -> int:
        """`max_image_megapixels` as a number of pixels."""
        return round(self.max_image_megapixels * 1e6)

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the preset's default, which is higher for normalised layers."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.has_backbone:
            return 1e-3
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
        not_training = {"resume", "unless_exists", "name", "quantize", "examples", "compare_with"}
        processes = {"devices", "nodes"}  # with any number of them the steps are the same
        excluded = locations | not_training | processes
        return self.model_dump(mode="json", exclude=excluded)


class DatasetConfig(TrainingConfig):
    """What `load_dataset` needs, for other programs than `python -m training`.

    It reads no environment variable and no file: those are the settings of the user's trainings.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the values that the constructor is given, and no others."""
        return (init_settings,)


class EvaluationConfig(DataFolders):
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
