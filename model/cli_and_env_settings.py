"""Base of the settings classes: flags, environment variables and a TOML file from one class.

Shared by all commands, whether they run as `python -m service` or as the script `dropserve-serve`.
Knows no option of any.
"""

import difflib
import json
import os
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as ParseError

from model.errors import SettingsError
from model.shell_completion import add_completion_option

USAGE_EXIT_STATUS = 2
"""Exit status for wrong command-line arguments, the same as that of argparse."""

_SCRIPT_PREFIX = "dropserve-"
"""How the names of the installed scripts begin; see `project.scripts` in pyproject.toml."""

_PATHS = "paths"
"""Name of a field of type `PathArguments`."""

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
        if not path:  # the settings refuse an empty one
            return {}
        try:
            options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise SettingsError(f"--config: cannot read {path}: {reason}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"--config: {path} is not valid TOML: {error}.") from None
        if "config" in options:
            raise SettingsError(
                f"--config: {path} names another file as config, which is not read; put the "
                "options of both into one file."
            )
        return options


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

    @field_validator("*", mode="before")
    @classmethod
    def _check_no_empty_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an empty path, which would be the current folder."""
        if value != "" or Path not in cls._types_of(info):
            return value
        name = str(info.field_name)
        if cls.model_fields[name].is_required():
            raise ValueError("it is empty; give a path.")
        variable = f"{cls.model_config['env_prefix']}{name}".upper()
        raise ValueError(f"it is empty; give a path, or leave out both the option and {variable}.")

    @field_validator("*", mode="before")
    @classmethod
    def _check_no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false of a TOML file, which would be 1 and 0."""
        types = cls._types_of(info)
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise PydanticCustomError("number_type", "Input should be a number")
        return value

    @classmethod
    def _types_of(cls, info: ValidationInfo) -> set[Any]:
        """Return what a field may be: `Path | None` gives both."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        return {annotation, *get_args(annotation)}

    @field_validator("*")
    @classmethod
    def _check_utf8(cls, value: Any) -> Any:
        """Refuse text that is not UTF-8, and paths that lie in a folder whose name is not.

        Logs, manifests and the libraries that read the files cannot hold such a name, and the last
        of them would fail hours later.
        """
        if not isinstance(value, str | Path):
            return value
        text = str(value.absolute()) if isinstance(value, Path) else value
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="backslashreplace").decode()
            raise ValueError(f"{shown} is not UTF-8; rename it, or choose another.") from None
        return value

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


def _decode_paths(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


PathArguments = CliPositionalArg[Annotated[list[str], NoDecode, BeforeValidator(_decode_paths)]]
"""Type of the field `paths`: one or more positional arguments, each taken as it is written.

A plain `list[str]` would be split at commas and quotation marks, which names of files may have."""
*_, _POSITIONAL = get_args(PathArguments)
"""What pydantic-settings marks a positional argument with."""


def _parse_arguments(
    parser: ArgumentParser, arguments: list[str] | None, namespace: Namespace | None = None
) -> Namespace:
    """Parse as argparse does; positional arguments may also stand between and after flags."""
    if "--" in (arguments or ()):
        parsed = parser.parse_args(arguments, namespace)
    else:
        parsed = parser.parse_intermixed_args(arguments, namespace)
    paths = getattr(parsed, _PATHS, None)
    if isinstance(paths, list):
        setattr(parsed, _PATHS, [json.dumps(paths)])
    return parsed


def load(settings: type[Settings], arguments: list[str] | None = None) -> Settings:
    """Load settings from `arguments` (without the program's name), environment, file and defaults.

    arguments: None: those of this process.

    Raises:
        SettingsError: names the first wrong option, the allowed values and the actual value.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return CliApp.run(settings, cli_args=given, cli_settings_source=_flags(settings))
    except ParseError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise SettingsError(f"{reason}; --help lists the options.") from None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, settings)) from None


def _flags(settings: type[CommandSettings]) -> CliSettingsSource[Any]:
    """Return what parses the flags; an installed script has one more, for shells."""
    script = _script_name()
    source = CliSettingsSource[Any](
        settings, cli_prog_name=script, parse_args_method=_parse_arguments
    )
    if script is not None:
        add_completion_option(
            source.root_parser, settings.model_fields, lambda: _flags(settings).root_parser
        )
    return source


def _script_name() -> str | None:
    """Return the name of the installed script that this process runs; None: it runs a module."""
    name = Path(sys.argv[0]).stem
    return name if name.startswith(_SCRIPT_PREFIX) else None


def load_or_exit(settings: type[Settings], arguments: list[str] | None = None) -> Settings:
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
            misspelled += [(name, match) for match in _meant(name.upper(), known)]
    return misspelled


def _meant(name: str, known: Sequence[str]) -> Sequence[str]:
    """Return the name that is meant by another, such as by its beginning; nothing if none is."""
    longer = [each for each in known if each.startswith(name)]
    if len(longer) == 1:
        return longer
    return difflib.get_close_matches(name, known, n=1, cutoff=_MIN_SIMILARITY)


def describe_validation_error(
    error: ValidationError, settings: type[CommandSettings] | None = None
) -> str:
    """Return a sentence with the first wrong setting, the allowed values and the actual value.

    settings: whose positional arguments are named as --help names them; None: there are none.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # the message of a check over several fields names them
        return message
    name = str(first["loc"][0])
    field = None if settings is None else settings.model_fields.get(name)
    is_positional = field is not None and _POSITIONAL in field.metadata
    option = name.upper() if is_positional else "--" + name.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"{option} is not an option; --help lists them."
    if first["type"] == "missing":
        return f"{option} is missing; --help says what it is."
    if first["type"] == "value_error":
        return f"{option}: {message}"
    return f"{option}: {message[0].lower()}{message[1:]}, but got {first['input']!r}."
