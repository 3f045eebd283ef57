"""The settings of `python -m service.replay`. Importing it reads no environment."""

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import CommandSettings
from service.settings import ServiceSettings


def _service_default(name: str) -> Any:
    return ServiceSettings.model_fields[name].default


class ReplaySettings(CommandSettings):
    """Send the images of a traffic log through a version, and report where it disagrees."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_REPLAY_", cli_prog_name="python -m service.replay"
    )

    folder: CliPositionalArg[Path] = Field(
        description="folder of a traffic log that was written with --traffic-log-images"
    )
    model: str = Field(description="model whose answers are replayed")
    version: int = Field(ge=1, description="version that answers now")
    models_folder: Path = Field(
        _service_default("models_folder"), description="folder of bundles, NAME/VERSION/"
    )
    report: Path | None = Field(None, description="JSON file to write the figures to, too")
    threads: int = Field(1, ge=1, le=256, description="threads of one inference run")

    def service_settings(self) -> ServiceSettings:
        """Return the settings of a server that answers as the replay does."""
        return ServiceSettings.model_construct(  # which reads no environment
            models_folder=self.models_folder,
            threads=self.threads,
            inference_timeout_seconds=_NO_TIMEOUT_SECONDS,
        )


_NO_TIMEOUT_SECONDS = 10.0**6
