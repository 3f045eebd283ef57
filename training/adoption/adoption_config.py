"""The validated options of `python -m training.adopt`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.bundle.store import check_new_name
from training.config import DEFAULT_EXAMPLES, Examples
from training.data_options import (
    DATA_SETS,
    DEFAULT_MAX_IMAGE_MEGAPIXELS,
    FOLDER_PREFIX,
    DuplicatesOfFolder,
    MaxImageMegapixels,
    PixelOptions,
    Resize,
    check_data_name,
)


def _decode_size(value: Any) -> Any:
    return str(value) if isinstance(value, int) else value


class AdoptionConfig(PixelOptions):
    """Turn a trained ONNX classifier into a bundle: cut, check, calibrate, report, publish."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_ADOPTION_", cli_prog_name="python -m training.adopt"
    )

    network: CliPositionalArg[Path] = Field(description="ONNX file of a trained classifier")
    data: str = Field(
        description=f"labelled images that it was not trained on: {FOLDER_PREFIX}PATH with one "
        f"sub-folder of images a class, or {', '.join(DATA_SETS)}"
    )
    name: str = Field(description="model name")
    classes: Path | None = Field(
        None,
        description="file with the name of one class a line, in the order of the network's "
        "outputs; default: the folder's classes in sorted order",
    )
    size: Annotated[str, BeforeValidator(_decode_size)] | None = Field(
        None,
        description="pixels of a side, or HEIGHTxWIDTH, where the network takes images of any size",
    )
    colour: Literal["grey", "rgb", "bgr"] | None = Field(
        None, description="grey, rgb or bgr; default: grey for one channel, else rgb"
    )
    resize: Resize = Field("crop", description="how images of another size are fitted")
    max_image_megapixels: MaxImageMegapixels = DEFAULT_MAX_IMAGE_MEGAPIXELS
    duplicates: DuplicatesOfFolder = "remove"
    cut: str | None = Field(
        None,
        description="dense layer that the head begins with, by its name or that of its input; "
        "default: chosen",
    )
    dropout: float | Literal["auto"] | None = Field(
        None,
        description="probability of zeroing, 0..1, or auto: the one with the lowest validation "
        "loss; default: the network's own, or auto where it has none",
    )
    output: Path = Field(Path("models"), description="folder that bundles are written to")

    examples: Examples = DEFAULT_EXAMPLES

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        return check_data_name(data)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_new_name(name)

    @field_validator("dropout")
    @classmethod
    def _check_dropout(cls, dropout: float | str | None) -> float | str | None:
        if isinstance(dropout, float) and not 0 <= dropout < 1:
            raise ValueError(f"must be at least 0 and below 1, but is {dropout:g}.")
        return dropout

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        if size is not None and not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", size):
            raise ValueError(f"{size!r} is neither a number of pixels nor HEIGHTxWIDTH.")
        return size

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """`size` in pixels; None: that of the network."""
        if self.size is None:
            return None
        height, _, width = self.size.partition("x")
        return int(height), int(width or height)

    @property
    def channels(self) -> Literal[1, 3] | None:
        """1 for grey, 3 for RGB and BGR, None for the channels of the network."""
        if self.colour is None:
            return None
        return 1 if self.colour == "grey" else 3
