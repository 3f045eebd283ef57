"""The validated options of `python -m training.evaluate`.

Imports no torch, so `--help` and usage errors are printed at once.
"""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from training.data_options import DATA_SETS, FOLDER_PREFIX, DataFolders, check_data_name

_OOD_ALIAS = "strangers"
"""The former name of the evaluation option `ood`; it still works."""


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
