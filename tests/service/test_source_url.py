"""URLs of a models source: the closed list of schemes, and credentials that are never shown."""

from base64 import b64decode
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings
from service.source_url import parse_source


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/models/", "s3://bucket/models"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/a/b", "az://container/a/b"),
        ("https://Example.org:8443/models", "https://Example.org:8443/models"),
        ("http://127.0.0.1:9000/m", "http://127.0.0.1:9000/m"),
        ("http://[::1]:9000/m", "http://[::1]:9000/m"),
        ("http://localhost/m", "http://localhost/m"),
        ("https://user:p%40ss@example.org/m", "https://example.org/m"),
    ],
)
def test_place_is_the_url_without_credentials(url: str, place: str) -> None:
    assert str(parse_source(url)) == place


def test_credentials_become_a_header_and_are_shown_nowhere() -> None:
    settings = ServiceSettings(models_source="https://user:p%40ss@example.org/m")
    url = settings.source_url
    assert url is not None
    assert url.authorization is not None
    assert b64decode(url.authorization.removeprefix("Basic ")) == b"user:p@ss"
    for shown in (repr(settings), repr(url), str(url)):
        assert "p%40ss" not in shown
        assert url.authorization not in shown


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///models", "begins with none of s3://, gs://, az://, https://"),
        ("models", "begins with none of"),
        ("memory://x", "begins with none of"),
        ("http://example.org/m", "http:// is for this machine's own addresses alone"),
        ("http://127.0.0.1.example.org/m", "http:// is for this machine's own addresses alone"),
        ("https://example.org/m?token=secret", "has no query"),
        ("s3://bucket/m#secret", "has no query and no fragment"),
        ("s3://key:secret@bucket/m", "takes its credentials from the environment"),
        ("https://example.org:secret/m", "it is no URL"),
        ("https:///m", "begins with none of"),
        ("https://user:12/secret@example.org/m", "write / in a user name or password as %2F"),
        ("https://token/secret@example.org/m", "write / in a user name or password as %2F"),
    ],
)
def test_url_that_cannot_be_used_is_refused_without_its_secret(url: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServiceSettings(models_source=url)
    message = caught.value.errors()[0]["msg"]
    assert reason in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"models_cache": "c"}, "--models-cache: it is of a source; give --models-source, too."),
        ({"models_source": "s3://b", "watch_seconds": 0}, "--watch-seconds: with 0 nothing"),
    ],
)
def test_settings_that_contradict_a_source_are_refused(
    options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        ServiceSettings.model_validate(options)


def test_cache_lies_beside_the_models_folder_unless_it_is_named() -> None:
    settings = ServiceSettings.model_validate({"models_source": "s3://b", "models_folder": "/m/x"})
    assert str(settings.bundles_folder) == "/m/x-cache"
    named = settings.model_copy(update={"models_cache": Path("/c")})
    assert named.bundles_folder == Path("/c")
