"""The validated options of `python -m training`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model.bundle.architecture_description import ActivationName, PresetName
from model.bundle.example_images import MAX_EXAMPLES
from model.bundle.store import check_new_name
from training.data_options import (
    DATA_SETS,
    DEFAULT_MAX_IMAGE_MEGAPIXELS,
    FOLDER_PREFIX,
    DataFolders,
    DuplicatesOfFolder,
    MaxImageMegapixels,
    PixelOptions,
    Resize,
    check_data_name,
    decode_whole_number,
)

Augmentation = Literal["none", "shift", "affine", "flip-crop", "photographs"]
ClassWeights = Literal["none", "balanced"]

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

EFFICIENTNET_LITE0: Literal["efficientnet-lite0"] = "efficientnet-lite0"
ONNX_BACKBONE: Literal["onnx"] = "onnx"
"""What the manifest calls the network of an ONNX file."""
NO_BACKBONE = "none"
Learning = Literal["frozen", "fine-tuned"]
MIN_BACKBONE_SIZE = 96
"""Least height and width of images for a backbone; on smaller ones its last maps are 2 x 2."""


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
    head_layers: Annotated[Literal[1, 2], BeforeValidator(decode_whole_number)] = Field(
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
        None,
        gt=0,
        allow_inf_nan=False,
        description="longest L2 norm of a hidden unit's incoming weights; default: any",
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
        return None if name is None else check_new_name(name)

    @model_validator(mode="after")
    def _check_default_name(self) -> Self:
        if self.name is None:
            try:
                check_new_name(self.model_name)
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
        if self.backbone == NO_BACKBONE and self.options_of_backbones:
            flags = ", ".join(self.options_of_backbones)
            raise ValueError(f"{flags} without a --backbone has no effect; leave one of them out.")
        if not self.has_backbone:
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
            "no --preset: it is a network of its own": self.preset != "cnn",
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
    def options_of_backbones(self) -> list[str]:
        """The flags of the given options that only a training with a backbone has."""
        learn = [] if self.learn is None else [f"--learn {self.learn}"]
        return learn + ([] if self.head_layers == 1 else [f"--head-layers {self.head_layers}"])

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
