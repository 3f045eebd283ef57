"""What pydantic found wrong with a JSON value, as the end of a sentence. Knows no route."""

from typing import Any

import orjson
from pydantic import ValidationError

_MAX_CHARACTERS = 100
"""Of a field's name or a value that the client has chosen."""


def first_problem(error: ValidationError) -> str:
    """Return where the first problem is, and what it is: `inputs.0.shape: field required`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:_MAX_CHARACTERS] or "it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}"


def quote(value: Any) -> str:
    """Return a JSON value as its client may have written it, or the beginning of it."""
    return orjson.dumps(value).decode()[:_MAX_CHARACTERS]
