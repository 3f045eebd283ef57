"""The pages /docs and /redoc, their files, and what /openapi.json says to clients of a proxy."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from service.app import create_app
from service.settings import ServiceSettings
from service.web import api_reference_files
from tests.service.serving import Application, check_error, serving

PAGES = ["/docs", "/redoc"]
ADDRESS = r'(?:src|href)="(.*?)"'
PROXY = "127.0.0.1"  # httpx's address in tests without a network


def files_of(service: Application, page: str) -> list[str]:
    """Return the paths of the files that a page loads, and of those that they import."""
    paths = [
        urljoin(page, address)
        for address in re.findall(ADDRESS, service.get(page).text)
        if "." in address.rpartition("/")[2]  # the others lead to pages
    ]
    scripts = [path for path in paths if path.endswith(("/docs.js", "/redoc.js"))]
    for script in scripts:  # which grows by what they import
        imported = re.findall(r'from "(\./.*?)"', service.get(script).text)
        scripts += [urljoin(script, address) for address in imported]
    return list(dict.fromkeys(paths + scripts))


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[Application]:
    settings = ServiceSettings(
        models_folder=tmp_path, root_path="/mine", trusted_proxies=f"{PROXY}, ::1"
    )
    with serving(create_app(settings)) as application:
        yield application


@pytest.mark.parametrize("page", PAGES)
def test_every_address_in_a_page_is_relative(service: Application, page: str) -> None:
    response = service.get(page)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    addresses = re.findall(ADDRESS, response.text)
    assert "openapi.json" in addresses
    assert not [each for each in addresses if each.startswith("/") or "//" in each]


@pytest.mark.parametrize("page", PAGES)
def test_page_has_no_inline_script_or_style(service: Application, page: str) -> None:
    text = service.get(page).text
    assert re.findall(r"<script[^>]*>([^<]+)</script>", text) == []
    assert "<style" not in text
    assert not re.search(r"\s(style|on\w+)=", text)


@pytest.mark.parametrize("page", PAGES)
def test_policy_of_a_page_permits_the_service_alone(service: Application, page: str) -> None:
    headers = service.get(page).headers
    assert headers["X-Frame-Options"] == "DENY"
    allowed = {
        name: sources
        for name, *sources in (
            part.split(" ") for part in headers["Content-Security-Policy"].split("; ")
        )
    }
    for kind in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert allowed.pop(kind) == ["'none'"]
    assert allowed.pop("script-src") == allowed.pop("connect-src") == ["'self'"]
    images = ["'self'", "blob:", "data:"] if page == "/docs" else ["'self'", "data:"]
    assert allowed.pop("img-src") == images
    own, *hashes = allowed.pop("style-src")
    assert own == "'self'"
    assert all(each.startswith("'sha256-") for each in hashes)
    assert allowed == {}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_a_page_is_served_with_its_type(service: Application, page: str) -> None:
    types = {"css": "text/css", "js": "text/javascript", "json": "application/json"}
    types |= {"svg": "image/svg+xml"}
    paths = set(files_of(service, page))
    assert len(paths) == 7 + (page == "/docs")
    for path in paths:
        response = service.get(path)
        assert response.status_code == 200, path
        assert response.headers["Content-Type"].startswith(types[path.rpartition(".")[2]])


@pytest.mark.parametrize("path", [*PAGES, "/openapi.json"])
def test_head_gives_the_headers_of_get(service: Application, path: str) -> None:
    for each in [path, *files_of(service, path)] if path in PAGES else [path]:
        got, head = service.get(each), service.request("HEAD", each)
        assert head.status_code == got.status_code == 200
        names = ("Content-Type", "Content-Length", "Cache-Control", "Content-Security-Policy")
        assert all(head.headers.get(name) == got.headers.get(name) for name in names)


def test_files_may_be_cached_for_ever_and_pages_not(service: Application) -> None:
    paths = [path for path in files_of(service, "/docs") if path.startswith("/docs/")]
    assert len(paths) == 6
    for path in paths:
        assert service.get(path).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for page in (*PAGES, "/openapi.json"):
        assert service.get(page).headers["Cache-Control"] == "no-cache"


def test_address_of_the_files_changes_with_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_reference_files, "_NO_LOGO", b"data:,another")
    assert api_reference_files.edition.__wrapped__() != api_reference_files.edition()


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br", "gzip"), ("identity", "identity"), ("gzip;q=0", "identity")],
)
def test_file_has_the_same_content_in_every_encoding(
    service: Application, accepted: str, encoding: str
) -> None:
    path = f"/docs/{api_reference_files.edition()}/swagger-ui.css"
    response = service.get(path, headers={"Accept-Encoding": accepted})
    assert response.content == api_reference_files.content("swagger-ui.css")
    assert response.headers["Vary"] == "Accept-Encoding"
    assert response.headers.get("Content-Encoding", "identity") == encoding


def test_compressed_file_is_less_than_a_third() -> None:
    for name in ("redoc.standalone.js", "swagger-ui-bundle.js", "swagger-ui.css"):
        content, compressed = (
            api_reference_files.content(name),
            api_reference_files.compressed(name),
        )
        assert gzip.decompress(compressed) == content
        assert len(compressed) < len(content) / 3


@pytest.mark.parametrize("path", ["{edition}/docs.html", "{edition}/favicon.png", "old/docs.js"])
def test_other_files_are_not_found(service: Application, path: str) -> None:
    path = "/docs/" + path.replace("{edition}", api_reference_files.edition())
    check_error(service.get(path), 404, "not_found", f"There is nothing at {path}; …")


def test_file_is_that_of_the_package_but_for_one_address() -> None:
    for name, folder in api_reference_files._FILES.items():
        original = (folder / name).read_bytes()
        changed = original.replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,")
        assert api_reference_files.content(name) == changed
        assert (original != changed) == (name == "redoc.standalone.js")


def test_redoc_shows_no_picture_of_another_host() -> None:
    assert b"cdn.redoc.ly" not in api_reference_files.content("redoc.standalone.js")
    assert b'src:"data:,"' in api_reference_files.content("redoc.standalone.js")


def servers(response: httpx.Response) -> list[str]:
    return [each["url"] for each in response.json().get("servers", [])]


def test_description_names_no_server_without_a_prefix(service: Application) -> None:
    forwarded = {"X-Forwarded-Prefix": "/theirs"}
    assert servers(service.get("/openapi.json")) == []
    assert servers(service.get("/openapi.json", headers=forwarded)) == []


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (None, "/mine"),
        ("/theirs", "/theirs"),
        ("/outer, /inner", "/outer/inner"),
        ("//evil.example", "/mine"),
        ('/"},{"', "/mine"),
    ],
)
def test_description_names_the_prefix_as_its_server(
    behind_proxy: Application, forwarded: str | None, expected: str
) -> None:
    headers = {} if forwarded is None else {"X-Forwarded-Prefix": forwarded}
    assert servers(behind_proxy.get("/openapi.json", headers=headers)) == [expected]


def test_root_path_is_redirected_to_the_page_below_it(behind_proxy: Application) -> None:
    response = behind_proxy.get("/mine")
    assert (response.status_code, response.headers["Location"]) == (308, "mine/")


def test_description_has_no_example_of_a_name_before_a_model_is_loaded(
    behind_proxy: Application,
) -> None:
    parameters = behind_proxy.get("/openapi.json").json()["components"]["parameters"]
    assert "example" not in parameters["ModelName"]


def test_description_is_the_same_in_every_encoding(service: Application) -> None:
    packed, plain = (
        service.get("/openapi.json", headers={"Accept-Encoding": each})
        for each in ("gzip", "identity")
    )
    assert packed.json() == plain.json()
    assert packed.headers["Content-Encoding"] == "gzip"
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 5
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
