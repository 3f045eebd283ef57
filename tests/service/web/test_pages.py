"""The HTML pages and their Content-Security-Policy."""

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from tests.service.serving import Application


def policy(service: Application, path: str) -> dict[str, list[str]]:
    parts = service.get(path).headers["Content-Security-Policy"].split("; ")
    return {name: sources for name, *sources in (part.split(" ") for part in parts)}


def test_index_page_links_to_the_documentation(service: Application) -> None:
    response = service.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert 'href="/docs"' in response.text


def test_docs_page_loads_the_openapi_description(service: Application) -> None:
    response = service.get("/docs")
    assert response.status_code == 200
    assert "/openapi.json" in response.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_forbid_framing_and_unlisted_sources(service: Application, path: str) -> None:
    assert service.get(path).headers["X-Frame-Options"] == "DENY"
    allowed = policy(service, path)
    for kind in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert allowed[kind] == ["'none'"]
    assert "'unsafe-inline'" not in allowed.get("script-src", [])
    assert "'unsafe-eval'" not in str(allowed)


def test_index_page_policy_allows_no_script_and_only_its_style(service: Application) -> None:
    page, allowed = service.get("/").text, policy(service, "/")
    assert "<script" not in page
    assert set(allowed) == {
        "default-src",
        "base-uri",
        "form-action",
        "frame-ancestors",
        "style-src",
    }
    assert allowed["style-src"] == digests(page, "style")


def test_docs_page_policy_allows_everything_it_loads(service: Application) -> None:
    page, allowed = service.get("/docs").text, policy(service, "/docs")
    for address in re.findall(r'<script src="(.*?)"', page):
        assert any(address.startswith(source) for source in allowed["script-src"])
    for address in re.findall(r'rel="stylesheet" href="(.*?)"', page):
        assert any(address.startswith(source) for source in allowed["style-src"])
    (icon,) = re.findall(r'rel="shortcut icon" href="(.*?)"', page)
    assert any(icon.startswith(source) for source in allowed["img-src"])
    assert set(digests(page, "script")) < set(allowed["script-src"])
    assert len(digests(page, "script")) == 1


def digests(page: str, element: str) -> list[str]:
    contents = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return [f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in contents]
