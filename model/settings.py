"""One settings class -> flags, environment variables and a TOML file.

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

USAGE_STATUS = 2
"""Exit status for a command line that cannot be used, as argparse has it."""

_ALIKE = 0.85  # of 1; a letter wrong, missing or swapped in a name of 20 gives 0.9 and more


class _TomlFile(PydanticBaseSettingsSource):
    """Reads the file that a source of higher priority (flag or environment) names as `config`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # values come whole from __call__

    def __call__(self) -> dict[str, Any]:
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
    """Base of a program's settings. Priority: flag, environment variable, file, default."""

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
        """Put the TOML file below the environment; no .env files, no secrets folder."""
        return init_settings, env_settings, _TomlFile(settings_cls)


Settings = TypeVar("Settings", bound=CommandSettings)


def load(settings: type[Settings], arguments: list[str]) -> Settings:
    """Parse `arguments` (without the program's name) over environment, file and defaults.

    Raises:
        SettingsError: naming the first wrong option, what is allowed, and what was given.
    """
    try:
        return CliApp.run(settings, cli_args=arguments)
    except ParseError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise SettingsError(f"{reason}; --help lists the options.") from None
    except ValidationError as error:
        raise SettingsError(sentence(error)) from None


def load_or_exit(settings: type[Settings], arguments: list[str]) -> Settings:
    """Like `load`, but prints the error's one sentence on stderr and exits with status 2.

    A variable that is almost a setting's, and so was surely meant to be one, is a warning there.
    """
    for mistyped, meant in near_misses(settings, os.environ):
        sys.stderr.write(f"Warning: {mistyped} is not a setting; did you mean {meant}?\n")
    try:
        return load(settings, arguments)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(USAGE_STATUS) from None


def near_misses(settings: type[CommandSettings], names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the variables that are no setting but look like one, each with the one they look like.

    Others under the prefix are left alone: other programs and container platforms set some.
    """
    prefix = settings.model_config["env_prefix"]
    known = [prefix + field.upper() for field in settings.model_fields]
    found = []
    for name in sorted(names):
        if name.upper().startswith(prefix) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=_ALIKE)
            found += [(name, each) for each in close]
    return found


def sentence(error: ValidationError) -> str:
    """Say which setting is wrong first, what is allowed, and what was given."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a check over several fields names them itself
        return message
    option = "--" + str(first["loc"][0]).replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"{option} is not an option; --help lists them."
    if first["type"] == "value_error":
        return f"{option}: {message}"
    return f"{option}: {message[0].lower()}{message[1:]}, but got {first['input']!r}."
