"""What pydantic found wrong with a JSON value, as the end of a sentence. Knows no route."""

from pydantic import ValidationError

_MAX_PLACE_CHARACTERS = 100
"""The place may hold a field's name that the client has chosen."""


def first_problem(error: ValidationError) -> str:
    """Return where the first problem is, and what it is: `inputs.0.shape: field required`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:_MAX_PLACE_CHARACTERS] or "it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}"
