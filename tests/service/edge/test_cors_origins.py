"""The origins that an operator may name."""

import pytest

from service.edge.cors_origins import parse_origins


def test_origins_are_separated_by_commas() -> None:
    text = "https://example.org, http://localhost:3000,http://[::1]:8000"
    assert parse_origins(text) == tuple(map(str.strip, text.split(",")))
    assert parse_origins("*") == ("*",)
    assert parse_origins("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "example.org",
        "https://example.org/",
        "https://Example.org",
        "*,https://a",
        "null",
        "https://*.a",
    ],
)
def test_other_text_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin; write such as"):
        parse_origins(text)
