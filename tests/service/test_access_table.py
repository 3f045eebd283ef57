"""The table of docs/security.md: what each route answers to each key, and to foreign requests.

`WRITE_ACCESS_TABLE=1 python -m pytest tests/service/test_access_table.py -n 0` writes it anew.
"""

import base64
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.http.asgi_request import CLIENT, CONTROL
from service.http.client_quotas import Client, LoopQuota
from service.keys.key_file_changes import add_key
from service.keys.scopes import SCOPES, required_scope
from service.settings import ServiceSettings
from service.web import api_reference_files
from tests.bundles import copy_bundle
from tests.conftest import ROOT
from tests.pictures import Pixels, encode, instances
from tests.service.serving import Application, serving_models

DOCUMENT = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- begin of the table -->\n\n", "\n<!-- end of the table -->"
WRITE = "WRITE_ACCESS_TABLE" in os.environ
WRONG = "ds-00000000-" + "A" * 43
FOREIGN_ORIGIN, FOREIGN_HOST, PROXIED = "foreign origin", "foreign Host", "through a proxy"
FOREIGN = {
    FOREIGN_ORIGIN: {"Origin": "https://foreign.example"},
    FOREIGN_HOST: {"Host": "foreign.example"},
    PROXIED: {
        "X-Forwarded-For": "203.0.113.9, 198.51.100.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "service",
    },
}
"""Requests with the right key that are foreign otherwise, and the headers that make them so."""
COLUMNS = ("no key", "wrong key", *SCOPES, *FOREIGN)
PARAMETERS = {
    "{name}": "digits",
    "{version}": "stable",
    "{number}": "0",
    "{edition}": api_reference_files.edition(),
    "{file:path}": "style.css",
}
LABEL_STUDIO = "http://127.0.0.1:9"
LABEL_CONFIG = (
    '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="3"/></Choices>'
    "</View>"
)
LABEL_STUDIO_BODIES: dict[str, dict[str, Any]] = {
    "setup": {"schema": LABEL_CONFIG},
    "predict": {"label_config": LABEL_CONFIG, "tasks": []},
    "webhook": {"action": "TASKS_CREATED"},
}
QUERIES = {"canary": "?version=1&share=0.5", "pin": "?version=2", "shadow": "?version=1"}


@cache
def routes() -> list[APIRoute]:
    """Return the routes of the service; built once, since FastAPI's warnings filter is global."""
    settings = ServiceSettings(feedback=Path("feedback.db"), label_studio=LABEL_STUDIO)
    app = create_app(settings)
    return [each for each in app.routes if isinstance(each, APIRoute)]


def test_every_route_declares_its_scope() -> None:
    assert len(routes()) == len(create_app(ServiceSettings()).routes)
    for route in routes():
        try:
            required_scope(route.endpoint)
        except AttributeError:
            pytest.fail(f"{route.path} declares neither a scope nor that it is public")


def test_route_that_changes_something_needs_the_scope_control() -> None:
    changing = {
        route.path
        for route in routes()
        if required_scope(route.endpoint) == "control" and "GET" not in (route.methods or ())
    }
    posts = {
        route.path
        for route in routes()
        if "POST" in (route.methods or ()) and required_scope(route.endpoint) != "predict"
    }
    assert posts - changing == {"/v2/repository/index"}, "which only lists"


class Keyed:
    """An application on whose public port everything is allowed that its keys allow."""

    def __init__(self, application: Application, tokens: dict[str, str], digit: Pixels) -> None:
        self._application = application
        self._tokens = tokens
        self._png = encode(digit)
        self._rows = instances([self._png])
        self._clients = (f"{each // 256}.{each % 256}" for each in count())

    def status(self, method: str, path: str, who: str, right: str | None) -> int:
        """Send a request from an address of its own, and return the status of the response.

        right: the scope of the route.
        """
        headers = FOREIGN.get(who, {}).copy()
        if who != "no key":
            key = (right or "predict") if who in FOREIGN else who
            headers["Authorization"] = f"Bearer {self._tokens.get(key, WRONG)}"
        body = self._png if method == "POST" else b""
        headers["Content-Type"] = "image/png"
        if path.startswith(("/v1", "/v2")) and method == "POST":
            headers["Content-Type"] = "application/json"
            body = self._rows if path.endswith(":predict") else b"{}"
            if path.endswith("/infer"):
                body = infer_body(self._png)
        if path.startswith("/label-studio") and method == "POST":
            headers["Content-Type"] = "application/json"
            body = orjson.dumps(LABEL_STUDIO_BODIES[path.rpartition("/")[2]])
        if path.endswith(("/promote", "/rollback")):
            self._give("canary?version=1&share=0.5")
        if path.endswith("/unshadow"):
            self._give("shadow?version=1")
        address = "127.0.0.1" if who == PROXIED else f"10.9.{next(self._clients)}"
        client = Client(address, LoopQuota())

        async def listener(scope: Scope, receive: Receive, send: Send) -> None:
            app = self._application.app
            await app({**scope, CONTROL: False, CLIENT: client}, receive, send)

        async def exchange() -> int:
            transport = httpx.ASGITransport(listener, client=(address, 49_152))
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as sender:
                response = await sender.request(method, path, content=body, headers=headers)
                check_headers(response, who)
                return response.status_code

        status: int = self._application.portal.call(exchange)
        if path.endswith("/unload") and status == 200:
            loading = path.removesuffix("/unload") + "/load"
            assert self._application.post(loading).status_code == 200
        return status

    def _give(self, second_version: str) -> None:
        """Give the stable version 2 a canary or a shadow."""
        for change in ("pin?version=2", second_version):
            assert self._application.post(f"/models/digits/{change}").status_code == 200


def check_headers(response: httpx.Response, who: str) -> None:
    """Check that no page may read an answer or embed it, whatever the route."""
    headers = response.headers
    assert not [name for name in headers if name.startswith("access-control-")], who
    assert headers["Vary"].endswith("Origin")
    parts = (part.partition(" ") for part in headers["Content-Security-Policy"].split("; "))
    policy = {directive: sources for directive, _, sources in parts}
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] in ("'none'", "'self'")


def infer_body(png: bytes) -> bytes:
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES"}
    data = {"data": [base64.b64encode(png).decode()]}
    return orjson.dumps({"inputs": [tensor | data]})


@pytest.fixture(scope="module")
def keyed(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory, digits: Pixels
) -> Iterator[Keyed]:
    routes()  # before another thread builds the description of the served application
    folder = tmp_path_factory.mktemp("table")
    for version in (1, 2):
        copy_bundle(bundle_folder, folder / "models", version=version)
    file = folder / "keys.json"
    tokens: dict[str, str] = {each: add_key(file, each, frozenset({each}), None) for each in SCOPES}
    options = {"api_keys_file": file, "control": "anyone", "allowed_hosts": "service"}
    options |= {"feedback": folder / "feedback.db", "label_studio": LABEL_STUDIO}
    options |= {"cors_origins": "https://example.org", "trusted_proxies": "127.0.0.1"}
    with serving_models(folder / "models", **options) as application:
        yield Keyed(application, tokens, digits[0])


def address(route: APIRoute) -> str:
    """Return a path of the route, and a query, with which it answers 200."""
    path = route.path.replace("/docs/{edition}/{name}", "/docs/{edition}/docs.js")
    for parameter, value in PARAMETERS.items():
        path = path.replace(parameter, value)
    if path == "/feedback":
        return path + "?label=3"
    return path + QUERIES.get(path.rpartition("/")[2], "")


def rows(keyed: Keyed) -> Iterator[str]:
    """Yield the lines of the table, one for each route."""
    yield f"| route | scope | {' | '.join(f'`{e}`' if e in SCOPES else e for e in COLUMNS)} |"
    yield "|---" * (2 + len(COLUMNS)) + "|"
    for route in routes():
        method = "POST" if "POST" in (route.methods or ()) else "GET"
        scope = required_scope(route.endpoint)
        statuses = [str(keyed.status(method, address(route), who, scope)) for who in COLUMNS]
        named = f"`{scope}`" if scope else "public"
        yield f"| `{method} {route.path}` | {named} | {' | '.join(statuses)} |"


def test_table_of_the_documentation_is_what_the_service_answers(keyed: Keyed) -> None:
    table = "\n".join(rows(keyed)) + "\n"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    if WRITE:
        DOCUMENT.write_text(before + BEGIN + table + END + after, encoding="utf-8")
        return
    assert written.splitlines() == table.splitlines()
    cells = re.findall(r"(?<=\| )\d{3}(?= \|)", written)
    assert len(cells) >= 400


def test_table_follows_from_the_scopes() -> None:
    """No key is served what it may not have, and each is served all that it may have."""
    text = DOCUMENT.read_text(encoding="utf-8")
    _, _, *lines = text.split(BEGIN)[1].split(END)[0].splitlines()
    assert len(lines) == len(routes())
    for line in lines:
        _, name, scope, *statuses, _ = [cell.strip(" `") for cell in line.split("|")]
        for who, status in zip(COLUMNS, statuses, strict=True):
            refused = {"no key": "401", "wrong key": "401", FOREIGN_HOST: "421"}.get(who, "403")
            is_allowed = scope in ("public", who) or who == PROXIED
            if who == FOREIGN_HOST:
                is_allowed = "/health/" in name
            if who == FOREIGN_ORIGIN:
                is_allowed = scope != "control"
            assert status == ("200" if is_allowed else refused), f"{name} with {who}"
