"""`python -m service.keys ACTION FILE`: add, revoke and list keys. The service need not run."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import CommandSettings, load_or_exit
from service.keys.key_file import KeyFile, KeyFileError, KeyName, read_key_file
from service.keys.key_file_changes import add_key, revoke_key
from service.keys.scopes import SCOPES, Scope

_NAME: TypeAdapter[str] = TypeAdapter(KeyName)


class KeySettings(CommandSettings):
    """Add, revoke and list the keys that a running service accepts."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_KEYS_", cli_prog_name="python -m service.keys"
    )

    action: CliPositionalArg[Literal["add", "revoke", "list"]] = Field(
        description="add: make a key and show it once. revoke: end a key. list: show what keys "
        "there are"
    )
    file: CliPositionalArg[Path] = Field(
        description="the file of keys, which the service is given as --api-keys-file"
    )
    name: str | None = Field(
        None, description="of add and revoke: the key's name, for example its user's"
    )
    scopes: str = Field(
        "predict,read",
        description="of add: what the key may do, with commas between: predict, read, metrics, "
        "control",
    )
    expires_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="of add: days until the key is of no more use; never if left out",
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                _NAME.validate_python(name)
            except ValidationError:
                raise ValueError(
                    f"{name[:64]!r} is no name of a key; write 1 to 64 letters, digits and ._-."
                ) from None
        return name

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, scopes: str) -> str:
        _parse_scopes(scopes)
        return scopes

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        if (self.name is None) == (self.action != "list"):
            raise ValueError("--name: for add and revoke, and needed there.")
        return self


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say, and return the exit status."""
    settings = load_or_exit(KeySettings, arguments)
    try:
        match settings.action, settings.name:
            case "add", str(name):
                scopes = _parse_scopes(settings.scopes)
                token = add_key(settings.file, name, scopes, settings.expires_days)
                sys.stderr.write("The key, which is shown this once; the file holds its hash:\n")
                sys.stdout.write(f"{token}\n")
            case "revoke", str(name):
                revoke_key(settings.file, name)
                sys.stdout.write(
                    f"{name}: revoked; a service that reads this file refuses it within two "
                    "seconds, one that has a copy (systemd's LoadCredential, a Secret) once that "
                    "is renewed\n"
                )
            case _:
                sys.stdout.write(_table(read_key_file(settings.file)))
    except KeyFileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parse_scopes(text: str) -> frozenset[Scope]:
    found: set[Scope] = set()
    for item in filter(None, map(str.strip, text.split(","))):
        scope = next((each for each in SCOPES if each == item), None)
        if scope is None:
            raise ValueError(f"{item!r} is no scope; there is {', '.join(SCOPES)}.")
        found.add(scope)
    if not found:
        raise ValueError(f"a key needs a scope; there is {', '.join(SCOPES)}.")
    return frozenset(found)


def _table(content: KeyFile) -> str:
    """Return a line for each key: name, id, scopes, when it was made, when it expires."""
    now = datetime.now(UTC)
    lines = [("NAME", "ID", "SCOPES", "CREATED", "EXPIRES")]
    for key in content.keys:
        expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}Z"
        if key.has_expired(now):
            expires += " (has expired)"
        scopes = ",".join(scope for scope in SCOPES if scope in key.scopes)
        lines.append((key.name, key.id, scopes, f"{key.created:%Y-%m-%d %H:%M}Z", expires))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
