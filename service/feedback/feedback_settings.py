"""The settings of `python -m service.feedback`. Importing it reads no environment."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import CommandSettings


class FeedbackSettings(CommandSettings):
    """Show, export and reset what a file of feedback holds; a service may use it meanwhile."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_FEEDBACK_", cli_prog_name="python -m service.feedback"
    )

    action: CliPositionalArg[Literal["show", "export", "reset"]] = Field(
        description="show: what the true labels say of each version. export: write the kept images "
        "as a folder of images by class. reset: end alarms, and test the promises anew"
    )
    file: CliPositionalArg[Path] = Field(
        description="the file of feedback, which the service is given as --feedback"
    )
    model: str | None = Field(None, description="only this model; all if left out")
    version: int | None = Field(None, ge=1, description="only this version; all if left out")
    output: Path | None = Field(
        None, description="of export: the new folder, which gets a folder for each class"
    )

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        if (self.output is None) == (self.action == "export"):
            raise ValueError("--output: for export, and needed there.")
        return self
