"""Keys in front of the routes: on the fast path and through ASGI, over real connections."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from service.http.http_protocol import HttpProtocol
from service.keys import key_ring
from service.keys.key_file_changes import add_key, revoke_key
from service.keys.scopes import Scope
from service.observability.request_log import RequestRecord
from tests.pictures import Pixels, encode
from tests.service.listening import Client, Listening, listening
from tests.service.serving import PNG, Application, serving_models

WRONG = "ds-00000000-" + "A" * 43
FAST, ASGI = "/predict", "/predict?model=digits"


class Keyed:
    """An application with keys."""

    def __init__(self, application: Application, file: Path, tokens: dict[str, str]) -> None:
        self.application = application
        self.file = file
        self.tokens = tokens


@pytest.fixture(scope="module")
def keyed(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    scopes: tuple[Scope, ...] = ("predict", "read")
    tokens: dict[str, str] = {
        each: add_key(file, f"{each}-user", frozenset({each}), None) for each in scopes
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(key_ring, "_POLL_SECONDS", 0.01)
        with serving_models(models_folder, api_keys_file=file) as application:
            yield Keyed(application, file, tokens)


@pytest.fixture(params=["fast", "asgi", "no fast path"])
def port(keyed: Keyed, request: pytest.FixtureRequest) -> Iterator[tuple[Listening, str]]:
    """A listener, and the path of a request that takes one of the ways to the endpoint."""
    protocol = HttpProtocol if request.param == "no fast path" else None
    with listening(keyed.application, protocol) as found:
        yield found, (ASGI if request.param == "asgi" else FAST)
        if protocol is None:
            assert set(found.paths) <= {request.param}


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: service", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "Content-Type: image/png", "", ""]).encode() + body


def exchange(client: Client, path: str, body: bytes, *lines: str) -> tuple[int, str, str | None]:
    """Send a request; return the status, the code and the challenge of its response."""
    client.send(post(path, body, *lines))
    response = client.read_response()
    code = orjson.loads(response.body).get("code", "")
    return response.status, code, response.headers["WWW-Authenticate"]


def test_request_is_served_by_its_key_alone_on_every_way(
    keyed: Keyed, port: tuple[Listening, str], digit: Pixels
) -> None:
    listener, path = port
    body = encode(digit)
    right, other = keyed.tokens["predict"], keyed.tokens["read"]
    for _ in range(2):  # a request like the one before is remembered, its permission is not
        client = listener.connect()
        assert exchange(client, path, body, f"Authorization: Bearer {right}") == (200, "", None)
        assert exchange(client, path, body, f"X-API-Key: {right}") == (200, "", None)
        challenge = 'Bearer realm="dropserve"'
        assert exchange(client, path, body) == (401, "key_required", challenge)
        wrong = exchange(listener.connect(), path, body, f"Authorization: Bearer {WRONG}")
        assert wrong == (401, "invalid_key", f'{challenge}, error="invalid_token"')
        lacking = exchange(listener.connect(), path, body, f"X-API-Key: {other}")
        scope = f'{challenge}, error="insufficient_scope", scope="predict"'
        assert lacking == (403, "key_scope", scope)
        keyed.application.portal.call(forget_failures, keyed)


async def forget_failures(keyed: Keyed) -> None:
    for cache in caches(keyed):
        cache.clear()


def caches(keyed: Keyed) -> list[dict[str, list[int]]]:
    """Return the failures by address that the checks of the routes count."""
    context = keyed.application.state["dropserve.http"]
    route = context.routes.find("POST", "/predict").route
    check = next(
        cell.cell_contents
        for cell in route.fast_endpoint.__closure__
        if hasattr(cell.cell_contents, "access")
    )
    return [check.access._failures]


def test_key_is_refused_before_the_body_is_sent(keyed: Keyed, digit: Pixels) -> None:
    with listening(keyed.application) as listener:
        client = listener.connect()
        lines = ["Expect: 100-continue", "Content-Type: image/png", "Content-Length: 9000000"]
        client.send(
            "\r\n".join(["POST /predict HTTP/1.1", "Host: service", *lines, "", ""]).encode()
        )
        response = client.read_response()
    assert response.status == 401
    assert response.headers["Connection"] == "close"


def test_eleventh_wrong_key_gets_429_and_the_connection_rests(
    keyed: Keyed, port: tuple[Listening, str], digit: Pixels
) -> None:
    listener, path = port
    body = encode(digit)
    keyed.application.portal.call(forget_failures, keyed)
    client = listener.connect()
    client.send(post(path, body, f"X-API-Key: {WRONG}") * 11)
    found = [client.read_response() for _ in range(11)]
    assert [each.status for each in found] == [401] * 10 + [429]
    assert orjson.loads(found[-1].body)["code"] == "too_many_attempts"
    assert found[-1].headers["Retry-After"] == "60"
    if listener.connections:
        connection = listener.connections[-1]
        listener.until(lambda: connection._is_backing_off)
    other = listener.connect()
    right = f"X-API-Key: {keyed.tokens['predict']}"
    assert exchange(other, path, body, right)[0] == 200, "of the same address"
    keyed.application.portal.call(forget_failures, keyed)


def test_keys_change_without_a_restart(keyed: Keyed, digit: Pixels) -> None:
    public = keyed.application.public()
    token = add_key(keyed.file, "new", frozenset({"predict"}), None)
    headers = PNG | {"X-API-Key": token}

    def answer() -> httpx.Response:
        keyed.application.portal.call(forget_failures, keyed)
        return public.post("/predict", encode(digit), headers=headers)

    deadline = time.monotonic() + 20
    while answer().status_code != 200:
        assert time.monotonic() < deadline, "the new key is not taken"
    revoke_key(keyed.file, "new")
    while answer().status_code != 401:
        assert time.monotonic() < deadline, "the revoked key is still taken"


def test_control_listener_needs_no_key(keyed: Keyed, digit: Pixels) -> None:
    assert keyed.application.post("/predict", encode(digit), headers=PNG).status_code == 200
    assert keyed.application.get("/metrics").status_code == 200
    assert keyed.application.public().get("/metrics").status_code == 401


def test_head_is_checked_as_get_is(keyed: Keyed) -> None:
    public = keyed.application.public()
    assert public.request("HEAD", "/v1/models").status_code == 401
    headers = {"X-API-Key": keyed.tokens["read"]}
    assert public.request("HEAD", "/v1/models", headers=headers).status_code == 200


def request_records(caplog: pytest.LogCaptureFixture) -> list[RequestRecord]:
    return [each for each in caplog.get_records("call") if isinstance(each, RequestRecord)]


def test_log_line_names_the_key(
    keyed: Keyed, digit: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"X-API-Key: {keyed.tokens['predict']}"]
    with listening(keyed.application) as listener, caplog.at_level(logging.DEBUG, "service"):
        client = listener.connect()
        for path, sent in ((FAST, lines), (ASGI, lines), (FAST, [])):
            exchange(client, path, encode(digit), *sent)
        assert listener.paths == ["fast", "asgi", "fast"]
        listener.until(lambda: len(request_records(caplog)) == 3)
    records = request_records(caplog)
    assert [each.__dict__.get("key") for each in records] == ["predict-user", "predict-user", None]


def test_description_says_which_routes_need_a_key(keyed: Keyed) -> None:
    description = keyed.application.public().get("/openapi.json").json()
    assert set(description["components"]["securitySchemes"]) == {"bearerKey", "headerKey"}
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    }
    assert operations["GET /health/live"]["security"] == []
    infer = operations["POST /v2/models/{name}/infer"]
    assert infer["security"] == [{"bearerKey": ["predict"]}, {"headerKey": ["predict"]}]
    for name, operation in operations.items():
        assert "security" in operation, name
        assert bool(operation["security"]) == ({"401", "429"} <= set(operation["responses"])), name
    assert "digits" not in str(description["components"]["parameters"])
