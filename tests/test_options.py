"""Each option of each command with a choice or a number, as the text that a user gives."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from model.cli_and_env_settings import CommandSettings
from tests.test_docs import PROGRAMS, flags


def choices_and_numbers(field: FieldInfo) -> Iterator[str | int | float]:
    """Return each choice that an option has, and one number where it takes numbers."""
    pending = [field.annotation]
    while pending:
        kind: Any = pending.pop()
        if get_origin(kind) is Literal:
            yield from get_args(kind)
        elif kind in (int, float):
            least = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
            within_other_bounds = 1 if kind is int else 0.25
            yield kind((*least, within_other_bounds)[0])
        elif kind is not list and get_origin(kind) is not list:
            pending += get_args(kind)


OPTIONS = [
    pytest.param(settings, name, value, id=f"{settings.__name__}-{name}-{value}")
    for settings in PROGRAMS
    for name, field in flags(settings).items()
    for value in choices_and_numbers(field)
]


def errors_of(name: str, settings: type[CommandSettings], arguments: list[str]) -> list[str]:
    """Return what is wrong with one option; others may be missing, or not go with it."""
    positional = [each for each in settings.model_fields if each not in flags(settings)]
    texts = [
        next(map(str, choices_and_numbers(settings.model_fields[each])), "x") for each in positional
    ]
    try:
        settings(_cli_parse_args=[*texts, *arguments])
    except ValidationError as error:
        return [each["msg"] for each in error.errors() if name in each["loc"]]
    return []


@pytest.mark.parametrize(("settings", "name", "value"), OPTIONS)
def test_option_is_read_from_the_text_of_a_flag_and_of_a_variable(
    settings: type[CommandSettings],
    name: str,
    value: str | float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = f"--{name.replace('_', '-')}={value}"
    assert errors_of(name, settings, [flag]) == []
    monkeypatch.setenv(f"{settings.model_config['env_prefix']}{name.upper()}", str(value))
    assert errors_of(name, settings, []) == []
