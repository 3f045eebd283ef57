"""The HTML pages, their static files and their Content-Security-Policy."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

from service.web import pages
from tests.service.serving import Application


def policy(service: Application, path: str) -> dict[str, list[str]]:
    parts = service.get(path).headers["Content-Security-Policy"].split("; ")
    return {name: sources for name, *sources in (part.split(" ") for part in parts)}


PAGES = ("/", "/ui/models", "/ui/monitor")


@pytest.mark.parametrize("path", PAGES)
def test_page_loads_files_that_are_served(service: Application, path: str) -> None:
    page = service.get(path)
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    addresses = re.findall(r'(?:src|href)="([^#]*?)"', page.text)
    files = {urljoin(path, each) for each in addresses}
    assert {"/ui/static/style.css", "/ui/models", "/docs", "/"} <= files
    for file in files:
        if file.startswith("/ui/static/"):
            assert service.get(file).status_code == 200, file


@pytest.mark.parametrize("path", PAGES)
def test_page_has_no_inline_script_or_style_and_no_absolute_address(
    service: Application, path: str
) -> None:
    page = service.get(path).text
    assert not re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page)
    assert not re.findall(r'(?:src|href)="(?:/|https?:)', page)


def test_static_file_is_revalidated_by_its_tag(service: Application) -> None:
    first = service.get("/ui/static/style.css")
    assert first.headers["Cache-Control"] == "no-cache"
    tag = {"If-None-Match": first.headers["ETag"]}
    assert service.get("/ui/static/style.css", headers=tag).status_code == 304


def test_static_file_is_that_of_the_folder_in_every_encoding(service: Application) -> None:
    for path in sorted((Path(pages.__file__).with_name("static")).iterdir()):
        for encoding in ("gzip", "identity"):
            response = service.get(f"/ui/static/{path.name}", headers={"Accept-Encoding": encoding})
            assert response.content == path.read_bytes()
            assert response.headers.get("Content-Encoding", "identity") == encoding
            assert response.headers["Vary"] == "Accept-Encoding"


def test_head_of_a_static_file_has_the_headers_of_get(service: Application) -> None:
    got, head = (service.request(each, "/ui/static/try.js") for each in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("path", ["missing.js", "../pages.py", "%2e%2e/pages.py", ""])
def test_only_static_files_are_served(service: Application, path: str) -> None:
    response = service.get(f"/ui/static/{path}")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


@pytest.mark.parametrize("path", PAGES)
def test_pages_forbid_framing_and_unlisted_sources(service: Application, path: str) -> None:
    assert service.get(path).headers["X-Frame-Options"] == "DENY"
    allowed = policy(service, path)
    for kind in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert allowed[kind] == ["'none'"]
    assert "'unsafe-inline'" not in allowed.get("script-src", [])
    assert "'unsafe-eval'" not in str(allowed)
