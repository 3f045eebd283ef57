"""A very long query costs little: it is refused before it is parsed."""

import pytest

from tests.service.bad_requests import PICTURE
from tests.service.serving import PNG, Application, check_error

TOO_LONG = "The query has …"
QUERIES = {
    "unknown names": "&".join(f"n{number}" for number in range(10_000)),
    "one name again and again": "&".join(["seed=1"] * 8_000),
    "escapes": "seed=" + "%41" * 19_000,
    "one long name": "x" * 58_000,
    "nothing but separators": "&" * 58_000,
    "pluses": "model=" + "+" * 58_000,
}
ROUTES = ["/predict", "/uncertainty", "/models", "/models/digits", "/health/live", "/health/ready"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", QUERIES)
def test_long_query_is_refused_before_it_is_parsed(
    service: Application, route: str, kind: str
) -> None:
    method = "POST" if route in ("/predict", "/uncertainty") else "GET"
    content, headers = (PICTURE, PNG) if method == "POST" else (None, {})
    url = f"{route}?{QUERIES[kind]}"
    response = service.request(method, url, content=content, headers=headers)
    check_error(response, 400, "invalid_query", TOO_LONG)
