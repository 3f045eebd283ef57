"""Senders, hosts, origins and rates over real connections, on the fast path and through ASGI."""

import http.client
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.http.cors_headers import CrossOrigin
from service.http.http_protocol import HttpProtocol
from service.keys.key_file_changes import add_key
from service.observability.request_log import RequestRecord
from tests.pictures import Pixels, encode, instances
from tests.service.listening import Client, Listening, listening
from tests.service.serving import Application, check_sentence, serving_models

FAST, ASGI = "/predict", "/predict?model=digits"
OWN, FOREIGN = "https://example.org", "https://foreign.example"
WAYS = ["fast", "asgi", "no fast path"]


@contextmanager
def listener_of(way: str, application: Application) -> Iterator[tuple[Listening, str]]:
    """Yield a listener, and the path of a request that takes one of the ways to the endpoint."""
    protocol = HttpProtocol if way == "no fast path" else None
    with listening(application, protocol) as found:
        yield found, (ASGI if way == "asgi" else FAST)
        if protocol is None:
            assert set(found.paths) <= {way}


@pytest.fixture(scope="module")
def application(models_folder: Path) -> Iterator[Application]:
    """Yield one whose clients are nginx, of 127.0.0.1, and pages of one other origin."""
    with serving_models(
        models_folder,
        trusted_proxies="127.0.0.1",
        allowed_hosts="example.org,*.example.net",
        cors_origins=OWN,
        max_images=2,
    ) as application:
        yield application


@pytest.fixture(params=WAYS)
def port(
    request: pytest.FixtureRequest, application: Application
) -> Iterator[tuple[Listening, str]]:
    with listener_of(request.param, application) as found:
        yield found


def exchange(
    client: Client,
    target: str,
    body: bytes,
    *lines: str,
    host: str = "example.org",
    method: str = "POST",
) -> tuple[int, str, http.client.HTTPMessage]:
    """Send a request; return the status, code and headers of its response."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    kind = "application/json" if body.startswith(b"{") else "image/png"
    head += [f"Content-Type: {kind}", *lines, "", ""]
    client.send("\r\n".join(head).encode() + body)
    response = client.read_response()
    code = orjson.loads(response.body).get("code", "") if response.body else ""
    return response.status, code, response.headers


def test_page_of_a_named_origin_may_read_answers_and_errors(
    port: tuple[Listening, str], digit: Pixels
) -> None:
    listener, path = port
    right, wrong, many = encode(digit), b"no image", instances([encode(digit)] * 3)
    for body, status in ((right, 200), (right, 200), (wrong, 400), (many, 413)):
        found, _, headers = exchange(listener.connect(), path, body, f"Origin: {OWN}")
        assert (found, headers["Access-Control-Allow-Origin"]) == (status, OWN)
        assert headers.get_all("Vary") == ["Origin"]
        assert "Access-Control-Allow-Credentials" not in headers
        exposed = headers["Access-Control-Expose-Headers"].split(", ")
        assert {"X-Request-ID", "Inference-Header-Content-Length", "Retry-After"} <= set(exposed)
        assert "traceresponse" in exposed


def test_page_of_another_origin_may_read_nothing(
    port: tuple[Listening, str], digit: Pixels
) -> None:
    listener, path = port
    for line in (f"Origin: {FOREIGN}", "Origin: null", f"Origin: {OWN}.evil.example", "X-A: b"):
        _, _, headers = exchange(listener.connect(), path, encode(digit), line)
        assert headers.get_all("Vary") == ["Origin"]
        assert [name for name in headers if name.lower().startswith("access-control")] == []


def preflight(listener: Listening, path: str, origin: str, asked: str) -> Any:
    lines = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    asked = f"Access-Control-Request-Headers: {asked}"
    return exchange(listener.connect(), path, b"", *lines, asked, method="OPTIONS")


def test_browser_gets_leave_for_what_clients_send(application: Application) -> None:
    with listening(application) as listener:
        names = "authorization,content-type,inference-header-content-length,traceparent"
        status, _, headers = preflight(listener, "/v2/models/digits/infer", OWN, names)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, OWN)
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert "Origin" in headers["Vary"]
        assert headers["X-Request-ID"]
        status, code, headers = preflight(listener, "/predict", FOREIGN, "content-type")
        assert (status, code) == (400, "cross_origin")
        assert "Access-Control-Allow-Origin" not in headers
        assert preflight(listener, "/predict", OWN, "x-other")[:2] == (400, "cross_origin")
        other = exchange(listener.connect(), "/predict", b"", method="OPTIONS")
        assert other[:2] == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"origin": FOREIGN, "access-control-request-headers": "x-other"},
            "Pages of this origin may not send requests; add it with --cors-origins.",
        ),
        (
            {"access-control-request-method": "PUT"},
            "Pages of other origins may not send 'PUT'; send GET, HEAD, POST.",
        ),
        (
            {"access-control-request-headers": "Content-Type, X-Other,x-third"},
            "Pages of other origins may not send the header 'X-Other'; leave it out.",
        ),
        (
            {"access-control-request-headers": ""},
            "Pages of other origins may not send the header ''; leave it out.",
        ),
        (
            {"access-control-request-private-network": "true"},
            "Pages of a public network may not send requests to a service in a private one; open …",
        ),
    ],
)
def test_refused_preflight_names_what_is_refused_and_what_to_do(
    asked: dict[str, str], sentence: str
) -> None:
    headers = {"origin": OWN, "access-control-request-method": "POST"} | asked
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "OPTIONS", "headers": lines}
    answer = CrossOrigin([OWN]).preflight_response(scope)
    assert answer is not None
    assert answer.status_code == 400
    check_sentence(orjson.loads(answer.body)["error"], sentence)


def test_any_origin_is_a_star_and_never_with_credentials(
    models_folder: Path, digit: Pixels
) -> None:
    with serving_models(models_folder, cors_origins="*") as application:
        for way in WAYS:
            with listener_of(way, application) as (listener, path):
                sent = f"Origin: {FOREIGN}", "Cookie: a=b"
                _, _, headers = exchange(listener.connect(), path, encode(digit), *sent)
                assert headers["Access-Control-Allow-Origin"] == "*"
                assert "Access-Control-Allow-Credentials" not in headers


def test_preflight_needs_no_key_and_refusals_for_want_of_one_can_be_read(
    models_folder: Path, tmp_path: Path, digit: Pixels
) -> None:
    add_key(tmp_path / "keys", "alice", frozenset({"predict"}), None)
    options = {"cors_origins": OWN, "api_keys_file": tmp_path / "keys"}
    with serving_models(models_folder, **options) as application:
        for way in WAYS:
            with listener_of(way, application) as (listener, path):
                sent = listener.connect(), path, encode(digit), f"Origin: {OWN}"
                status, code, headers = exchange(*sent)
                assert (status, code) == (401, "key_required")
                assert headers["Access-Control-Allow-Origin"] == OWN
        with listening(application) as listener:
            assert preflight(listener, "/predict", OWN, "authorization")[0] == 200


def test_request_to_another_host_is_refused_on_every_way(
    port: tuple[Listening, str], digit: Pixels
) -> None:
    listener, path = port
    for host, status in (
        ("example.org:8000", 200),
        ("a.example.net", 200),
        ("evil.example", 421),
        ("127.0.0.1", 421),
        ("", 421),
        ("example.org", 200),
    ):
        for _ in range(2):  # the second is like the first, which is remembered
            found = exchange(listener.connect(), path, encode(digit), host=host)
            assert found[:2] == (status, "" if status == 200 else "wrong_host"), host


def test_host_in_the_target_and_of_a_proxy_have_to_be_served_too(
    application: Application, digit: Pixels
) -> None:
    with listening(application) as listener:

        def status(target: str, *lines: str, host: str = "example.org") -> int:
            return exchange(listener.connect(), target, encode(digit), *lines, host=host)[0]

        assert status("http://example.org:80/predict") == 200
        assert status("http://evil.example/predict") == 421
        assert status("http://example.org@evil.example/predict") == 421
        assert status("http://[::1]/predict") == 421
        assert status("http://example.org/predict", host="evil.example") == 421
        assert status("/predict", "X-Forwarded-Host: evil.example") == 421
        assert status("/predict", "X-Forwarded-Host: example.org", host="evil.example") == 421
        assert status("/predict", "Forwarded: for=198.51.100.7;host=evil.example") == 421
        of_proxy = "X-Forwarded-For: 198.51.100.7", "X-Forwarded-Host: evil.example"
        assert status("/predict", *of_proxy, "Forwarded: for=6.6.6.6") == 421
        assert status("/predict", *of_proxy, "Forwarded: for") == 421


def test_page_of_a_named_origin_may_not_read_the_control_listener(
    application: Application,
) -> None:
    """It needs no key, and a browser on the same machine reaches its port."""
    asked = {"Origin": OWN, "Access-Control-Request-Method": "GET"}
    for answer in (
        application.get("/models", headers=asked),
        application.request("OPTIONS", "/models", headers=asked),
    ):
        assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_health_is_answered_for_any_host(application: Application) -> None:
    with listening(application) as listener:
        for path in ("/health/live", "/health/ready", "/v2/health/live"):
            found = exchange(listener.connect(), path, b"", host="10.1.2.3:8000", method="GET")
            assert found[0] == 200


def test_rebound_page_changes_no_model_without_the_setting(models_folder: Path) -> None:
    """Its requests are of the service's own origin to the browser, which still names it."""
    with (
        serving_models(models_folder, control="anyone") as application,
        listening(application) as listener,
    ):
        sent = (
            listener.connect(),
            "/models/digits/pin?version=1",
            b"",
            "Origin: http://evil.example",
        )
        assert exchange(*sent, host="evil.example")[:2] == (403, "control_disabled")


def logged_clients(caplog: pytest.LogCaptureFixture) -> list[str | None]:
    records = [each for each in caplog.get_records("call") if isinstance(each, RequestRecord)]
    return [each.__dict__.get("client") for each in records]


def test_log_names_the_client_that_the_proxy_names(
    port: tuple[Listening, str], digit: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    listener, path = port
    sent = [
        ["X-Forwarded-For: 6.6.6.6, 198.51.100.7"],
        ["Forwarded: for=198.51.100.8", "X-A: b"],
        ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 198.51.100.9"],
        ["X-Forwarded-For: no address"],
        [],
    ]
    with caplog.at_level(logging.DEBUG, "service"):
        client = listener.connect()
        for lines in sent:
            assert exchange(client, path, encode(digit), *lines)[0] == 200
        listener.until(lambda: len(logged_clients(caplog)) == len(sent))
    own = "127.0.0.1"
    expected = ["198.51.100.7", "198.51.100.8", "198.51.100.9", own, own]
    assert logged_clients(caplog) == expected


def test_each_client_behind_a_proxy_has_its_own_rate_and_delays_no_other(
    models_folder: Path, digit: Pixels
) -> None:
    limits = {"client_requests_per_second": 0.01, "client_burst_seconds": 200}
    with serving_models(models_folder, trusted_proxies="127.0.0.1", **limits) as application:
        for number, way in enumerate(WAYS):
            with listener_of(way, application) as (listener, path):
                proxy = listener.connect()
                for client in ("1", "2"):
                    line = f"X-Forwarded-For: 192.0.{number}.{client}"
                    found = [exchange(proxy, path, encode(digit), line) for _ in range(3)]
                    codes = [each[:2] for each in found]
                    assert codes == [(200, ""), (200, ""), (429, "rate_limited")]
                    assert 90 <= int(found[-1][2]["Retry-After"]) <= 100
                assert not any(each._is_backing_off for each in listener.connections)


def test_images_of_a_batch_count_each(models_folder: Path, digit: Pixels) -> None:
    limits = {"client_images_per_second": 0.01, "client_burst_seconds": 300}
    batch = instances([encode(digit)] * 2)
    with serving_models(models_folder, trusted_proxies="127.0.0.1", **limits) as application:
        for number, way in enumerate(WAYS):
            with listener_of(way, application) as (listener, path):
                line = f"X-Forwarded-For: 192.0.2.{number}"
                found = [exchange(listener.connect(), path, batch, line)[0] for _ in range(3)]
                assert found == [200, 200, 429], "the second takes more than is left, and pays"


def test_rate_is_a_keys_where_there_are_keys(
    models_folder: Path, tmp_path: Path, digit: Pixels
) -> None:
    keys = [add_key(tmp_path / "keys", each, frozenset({"predict"}), None) for each in "ab"]
    limits = {"client_requests_per_second": 0.01, "client_burst_seconds": 100}
    with (
        serving_models(models_folder, api_keys_file=tmp_path / "keys", **limits) as application,
        listening(application) as listener,
    ):
        for key in keys:
            sent = FAST, encode(digit), f"X-API-Key: {key}"
            assert exchange(listener.connect(), *sent)[0] == 200
            assert exchange(listener.connect(), *sent)[:2] == (429, "rate_limited")
        assert exchange(listener.connect(), FAST, encode(digit))[0] == 401
        assert exchange(listener.connect(), "/health/live", b"", method="GET")[0] == 200


@pytest.mark.parametrize("way", ["fast", "asgi"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8001", 200),
        ("127.0.0.1", 200),
        ("[::1]:8001", 200),
        ("example.org", 421),
        ("localhost.evil.example", 421),
    ],
)
def test_control_port_answers_for_this_machine_alone(
    application: Application, digit: Pixels, way: str, host: str, status: int
) -> None:
    with listener_of(way, application) as (port, path):
        client = port.connect()
        port.until(lambda: len(port.connections) > 0)
        port.connections[-1].is_control = True
        found, code, _ = exchange(client, path, encode(digit), host=host)
        assert (found, code) == (status, "" if status == 200 else "wrong_host")
