"""The settings of `python -m service.check`: those of the service, and the form of the report."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from service.settings import ServiceSettings


class CheckSettings(ServiceSettings):
    """Examine what python -m service would do with the same settings, without serving."""

    model_config = SettingsConfigDict(cli_prog_name="python -m service.check")

    format: Literal["text", "json"] = Field(
        "text", description="form of the report: a line for each finding, or one JSON object"
    )
