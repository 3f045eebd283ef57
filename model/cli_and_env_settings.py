"""Base of the settings classes: flags, environment variables and a TOML file from one class.

Shared by `python -m training` and `python -m service`. Knows no option of either.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as ParseError

from model.errors import SettingsError

USAGE_EXIT_STATUS = 2
"""Exit status for wrong command-line arguments, the same as that of argparse."""

_MIN_SIMILARITY = 0.85
"""Of `difflib`, 0..1. One wrong, missing or swapped letter in a name of 20 gives 0.9 or more."""


class _TomlFile(PydanticBaseSettingsSource):
    """Reads the TOML file that a flag or an environment variable names as `config`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return no value, since `__call__` returns all values at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the options in the file; none if no file is named."""
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            return tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise SettingsError(f"--config: cannot read {path}: {reason}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"--config: {path} is not valid TOML: {error}.") from None


class CommandSettings(BaseSettings):
    """Base class of a program's settings. Priority: flag, environment variable, file, default."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_show_env_vars=True,
    )

    config: Path | None = Field(
        None, description="TOML file with any of these options, names with underscores"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give the TOML file the lowest priority; read no .env files and no secrets folder."""
        return init_settings, env_settings, _TomlFile(settings_cls)


Settings = TypeVar("Settings", bound=CommandSettings)


def load(settings: type[Settings], arguments: list[str]) -> Settings:
    """Load settings from `arguments` (without the program's name), environment, file and defaults.

    Raises:
        SettingsError: names the first wrong option, the allowed values and the actual value.
    """
    try:
        return CliApp.run(settings, cli_args=arguments)
    except ParseError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise SettingsError(f"{reason}; --help lists the options.") from None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None


def load_or_exit(settings: type[Settings], arguments: list[str]) -> Settings:
    """Load settings as `load`; on an error, print its sentence on stderr and exit with status 2.

    An environment variable that looks like a misspelled setting causes a warning on stderr.
    """
    for mistyped, meant in misspelled_variables(settings, os.environ):
        sys.stderr.write(f"Warning: {mistyped} is not a setting; did you mean {meant}?\n")
    try:
        return load(settings, arguments)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(USAGE_EXIT_STATUS) from None


def misspelled_variables(
    settings: type[CommandSettings], names: Iterable[str]
) -> list[tuple[str, str]]:
    """Return the variables that look like a misspelled setting, each with that setting's variable.

    Other variables with the prefix are ignored, since other programs and container platforms set
    some.
    """
    prefix = settings.model_config["env_prefix"]
    known = [prefix + field.upper() for field in settings.model_fields]
    misspelled = []
    for name in sorted(names):
        if name.upper().startswith(prefix) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=_MIN_SIMILARITY)
            misspelled += [(name, match) for match in close]
    return misspelled


def describe_validation_error(error: ValidationError) -> str:
    """Return a sentence with the first wrong setting, the allowed values and the actual value."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # the message of a check over several fields names them
        return message
    option = "--" + str(first["loc"][0]).replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"{option} is not an option; --help lists them."
    if first["type"] == "value_error":
        return f"{option}: {message}"
    return f"{option}: {message[0].lower()}{message[1:]}, but got {first['input']!r}."
