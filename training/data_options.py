"""The options that commands share: which images, from which folders, and how pixels become numbers.

Imports no torch, so `--help` and usage errors are printed at once.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, field_validator, model_validator
from pydantic_settings import NoDecode

from model.cli_and_env_settings import CommandSettings
from training.cache_folders import default_cache_folder

DATA_SETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar-10")
FOLDER_PREFIX = "folder:"

Resize = Literal["crop", "pad", "stretch"]
Duplicates = Literal["remove", "keep"]

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


def _decode_numbers(value: Any) -> Any:
    """Return a list of the numbers in a text with commas, and of a single number."""
    if isinstance(value, str):
        return value.strip("[]").split(",")
    return [value] if isinstance(value, int | float) else value


Numbers = Annotated[list[FiniteFloat], NoDecode, BeforeValidator(_decode_numbers)]
"""Type of an option that is one number or several with commas between, as in `0.5` or `.4,.5,.6`.

Without `NoDecode`, each would have to be a number of JSON, which `.5` is not."""


def decode_whole_number(value: Any) -> Any:
    """Return a text of digits as a number, which a `Literal` of numbers takes no text for."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


PixelMaximum = Annotated[Literal[1, 255], BeforeValidator(decode_whole_number)]


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
