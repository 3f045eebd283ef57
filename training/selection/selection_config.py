"""The validated options of `python -m training.select`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from model.dropout.masks import MAX_SEED
from model.uncertainty.calibration import DEFAULT_MAX_FALSE_ALARM
from training.data_options import (
    DATA_SETS,
    DEFAULT_MAX_IMAGE_MEGAPIXELS,
    FOLDER_PREFIX,
    DataFolders,
    Duplicates,
    MaxImageMegapixels,
    check_data_name,
)

Method = Literal["batchbald", "bald", "entropy", "variation-ratio", "typical", "random"]
BATCHBALD: Literal["batchbald"] = "batchbald"
WITHOUT_SAMPLES: tuple[Method, ...] = ("entropy", "random")
"""The methods that mean something where all samples of an image are equal."""


class SelectionConfig(DataFolders):
    """Choose the images of a pool that are most worth labelling: a list, and a contact sheet."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_SELECTION_", cli_prog_name="python -m training.select"
    )

    model: Path = Field(description="folder of one version, models/NAME/VERSION")
    pool: str = Field(
        description=f"images to choose from: {FOLDER_PREFIX}PATH with image files at any depth, or "
        f"the training and validation images of {', '.join(DATA_SETS)}"
    )
    count: int = Field(100, ge=1, le=100_000, description="how many images to choose")
    method: Method = Field(
        BATCHBALD,
        description="what makes an image worth labelling: batchbald, bald, entropy, "
        "variation-ratio, typical or random",
    )
    output: Path = Field(
        Path("selection.csv"), description="list to write, .csv or .jsonl; it must not exist yet"
    )
    contact_sheet: Path | None = Field(
        None, description="HTML page of the chosen images to write; it must not exist yet"
    )
    samples: int = Field(256, ge=2, le=4096, description="dropout samples T of each image")
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="seed of the masks and of everything that is drawn"
    )
    shortlist: int | None = Field(
        None,
        ge=1,
        description="images with the highest mutual information that batchbald chooses from; "
        "10 times --count if left out, or as many as take 1 GiB",
    )
    duplicates: Duplicates = Field(
        "remove",
        description="whether an image is left out whose picture is in the list already",
    )
    typicality_at_least: float | None = Field(
        None,
        ge=0,
        le=1,
        description="leave out images of a lower typicality; default "
        f"{DEFAULT_MAX_FALSE_ALARM}, and 0 with --typicality-at-most",
    )
    typicality_at_most: float | None = Field(
        None, ge=0, le=1, description="leave out images of a higher typicality, to see unusual ones"
    )
    max_image_megapixels: MaxImageMegapixels = DEFAULT_MAX_IMAGE_MEGAPIXELS
    threads: int | None = Field(
        None, ge=1, le=256, description="processor threads, one a core if left out; no byte changes"
    )

    @field_validator("pool")
    @classmethod
    def _check_pool(cls, pool: str) -> str:
        return check_data_name(pool)

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: Path) -> Path:
        if output.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError(f"{str(output)!r} names no format; end it in .csv or .jsonl.")
        return output

    @field_validator("output", "contact_sheet")
    @classmethod
    def _check_new(cls, file: Path | None) -> Path | None:
        if file is not None and file.exists():
            raise ValueError(f"{file} exists, and somebody may work with it; name another.")
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"there is no folder {file.parent}; name one that exists.")
        return file

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        at_least, at_most = self.typicality_range
        if at_least > at_most:
            raise ValueError(
                f"--typicality-at-least {at_least} is above --typicality-at-most {at_most}; no "
                "image is between."
            )
        if self.contact_sheet and self.contact_sheet.resolve() == self.output.resolve():
            raise ValueError("--contact-sheet and --output name one file; name two.")
        if self.shortlist is not None and self.method != BATCHBALD:
            raise ValueError("--shortlist is of --method batchbald alone; leave it out.")
        if self.shortlist is not None and self.shortlist < self.count:
            raise ValueError(f"--shortlist is less than --count {self.count}; give at least that.")
        return self

    @property
    def typicality_range(self) -> tuple[float, float]:
        """The least and the highest typicality of an image that may be chosen."""
        at_least, at_most = self.typicality_at_least, self.typicality_at_most
        if at_least is None:
            at_least = DEFAULT_MAX_FALSE_ALARM if at_most is None else 0.0
        return at_least, 1.0 if at_most is None else at_most

    @property
    def asks_for_typicality(self) -> bool:
        """Whether an option has a meaning only for a calibrated bundle."""
        limits = (self.typicality_at_least, self.typicality_at_most)
        return self.method == "typical" or limits != (None, None)
