"""Files of one Label Studio are fetched, and nothing else of it or of anybody."""

import pytest

from service.label_studio_url import parse_label_studio

STUDIO = parse_label_studio("https://studio.example.org/ls/")


@pytest.mark.parametrize(
    "reference",
    [
        "/data/upload/1/a.png",
        "/ls/data/upload/1/a.png",
        "https://studio.example.org/ls/data/upload/1/a.png",
        "https://STUDIO.example.org:443/ls/data/upload/1/a.png",
        "https://somebody:secret@studio.example.org/ls/data/upload/1/a.png",
    ],
)
def test_uploaded_file_has_one_url(reference: str) -> None:
    assert STUDIO.file_url(reference) == "https://studio.example.org/ls/data/upload/1/a.png"


def test_query_of_a_local_file_is_kept() -> None:
    url = STUDIO.file_url("/data/local-files/?d=a%2Fb.png")
    assert url == "https://studio.example.org/ls/data/local-files/?d=a%2Fb.png"


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "a.png",
        "http://studio.example.org/ls/data/a.png",
        "https://studio.example.org:8443/ls/data/a.png",
        "https://studio.example.org.evil.example/data/a.png",
        "https://studio.example.org@evil.example/data/a.png",
        "https://169.254.169.254/data/latest",
        "//evil.example/data/a.png",
        "file:///data/a.png",
        "gopher://studio.example.org/data/a.png",
        "https://[::1/data/a.png",
        "https://studio.example.org:x/data/a.png",
        "/api/projects",
        "/ls/api/projects",
        "/lsdata/a.png",
        "/data/../api/projects",
        "/data/%2e%2e/api/projects",
        "/data/..%2fapi/projects",
        "/data/..\\api",
        "/data/%0d%0aHost: evil.example",
        "\\\\evil.example\\data\\a.png",
    ],
)
def test_everything_else_is_not_fetched(reference: str) -> None:
    with pytest.raises(ValueError, match=r"are fetched|no URL"):
        STUDIO.file_url(reference)


def test_line_break_never_reaches_a_request() -> None:
    url = STUDIO.file_url("/data/a\r\nHost:evil.example")
    assert url == "https://studio.example.org/ls/data/aHost:evil.example"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "studio.example.org",
        "ftp://studio.example.org",
        "https://",
        "https://user:secret@studio.example.org",
        "https://studio.example.org?a=b",
        "https://studio.example.org:99999",
    ],
)
def test_impossible_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="write one such as https://") as error:
        parse_label_studio(url)
    assert "secret" not in str(error.value)
