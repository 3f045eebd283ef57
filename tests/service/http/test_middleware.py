"""Tests of the middleware: request ids, log lines, metrics, limits and unexpected errors."""

import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from service.edge.trusted_proxies import ReverseProxies
from service.http.client_quotas import Clients, ResourceLimits
from service.http.middleware import REQUEST_ID_HEADER, RequestMiddleware
from service.http.request_head_checks import HeadInspector
from service.observability import log_format
from service.observability.metrics_recorder import Metrics
from service.observability.request_log import RequestRecord
from tests.service.bad_requests import PICTURE
from tests.service.listening import listening
from tests.service.serving import (
    PNG,
    Application,
    BlockingPredictor,
    BrokenPredictor,
    check_error,
    metric,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)

LIMITS = ResourceLimits(connections=8, buffered_bytes=8, requests=8)
GENERATED_ID = re.compile(r"[0-9a-f]{32}")

REQUESTS = [("GET", "/health/live"), ("POST", "/predict"), ("GET", "/nowhere"), ("PUT", "/metrics")]


@pytest.mark.parametrize(("method", "url"), REQUESTS)
@pytest.mark.parametrize("sent_id", ["a", "A-z_0:9.", "x" * 128])
def test_middleware_returns_a_well_formed_request_id(
    service: Application, method: str, url: str, sent_id: str
) -> None:
    response = service.request(method, url, headers={REQUEST_ID_HEADER: sent_id})
    assert response.headers.get_list(REQUEST_ID_HEADER) == [sent_id]


@pytest.mark.parametrize(("method", "url"), REQUESTS)
@pytest.mark.parametrize("sent_id", [None, "", "x" * 129, "a b", 'a"b', "a\x7f", "é"])
def test_middleware_replaces_a_missing_or_malformed_request_id(
    service: Application, method: str, url: str, sent_id: str | None
) -> None:
    headers = {} if sent_id is None else {REQUEST_ID_HEADER: sent_id.encode()}
    found = [service.request(method, url, headers=headers) for _ in range(2)]
    ids = [response.headers[REQUEST_ID_HEADER] for response in found]
    assert all(GENERATED_ID.fullmatch(each) for each in ids)
    assert ids[0] != ids[1]


def captured(*processors: Any) -> Any:
    return capture_logs(processors=[log_format.add_ids, *processors])


def request_records(caplog: pytest.LogCaptureFixture) -> list[RequestRecord]:
    return [record for record in caplog.records if isinstance(record, RequestRecord)]


def test_middleware_logs_one_line_for_each_request(
    service: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="service"):
        service.get("/models?x=1", headers={REQUEST_ID_HEADER: "one"})
        service.post("/predict", PICTURE, headers=PNG | {REQUEST_ID_HEADER: "two"})
        service.get("/health/live", headers={REQUEST_ID_HEADER: "three"})
        records = request_records(caplog)
    assert [
        (each.__dict__["request_id"], each.method, each.path, each.status, each.levelname)
        for each in records
    ] == [
        ("one", "GET", "/models", 400, "INFO"),
        ("two", "POST", "/predict", 200, "INFO"),
        ("three", "GET", "/health/live", 200, "DEBUG"),
    ]
    assert all(each.milliseconds > 0 for each in records)


HEAD = "Host: a\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (f"GET / HTTP/2.0\r\n{HEAD}\r\n", 505),
        (f"GET / HTTP/1.2\r\n{HEAD}\r\n", 505),
        (f"GET / HTTP/3.0\r\n{HEAD}\r\n", 505),
        (f"GET / HTTP/3\r\n{HEAD}\r\n", 400),
        (f"GET /{'x' * 65_600}", 431),
        (f"GET / HTTP/1.1\r\n{HEAD}Transfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
def test_head_that_the_protocol_refuses_has_an_id_a_log_line_and_a_count(
    service: Application, caplog: pytest.LogCaptureFixture, sent: str, status: int
) -> None:
    labels = {"route": "unmatched", "method": "any", "status": str(status)}
    before = service.metric("dropserve_requests_total", **labels)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="service"), listening(service) as port:
        client = port.connect()
        client.send(sent.encode())
        response = client.read_response()
        port.until(lambda: not port.state.tasks)
        (record,) = request_records(caplog)
    assert response.status == record.status == status
    assert response.headers[REQUEST_ID_HEADER] == record.__dict__["request_id"]
    assert response.headers["X-Frame-Options"] == "DENY"
    assert (record.method, record.path) == ("-", "-")
    assert service.metric("dropserve_requests_total", **labels) == before + 1


@pytest.mark.parametrize("query", ["", "?model=digits"], ids=["fast path", "ASGI"])
def test_body_that_the_protocol_refuses_has_the_id_and_one_log_line_of_its_request(
    service: Application, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    head = f"POST /predict{query} HTTP/1.1\r\n{HEAD}X-Request-ID: mine\r\n"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="service"), listening(service) as port:
        client = port.connect()
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\nzz".encode())
        response = client.read_response()
        port.until(lambda: not port.state.tasks)
        (record,) = request_records(caplog)
    assert response.status == record.status == 400
    assert response.headers[REQUEST_ID_HEADER] == record.__dict__["request_id"] == "mine"
    assert (record.method, record.path) == ("POST", "/predict")


def test_head_that_does_not_arrive_in_time_has_an_id_and_a_log_line(
    models_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, logger="service"),
        serving_models(models_folder, head_timeout_seconds=0.05) as service,
        listening(service) as port,
    ):
        client = port.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: ")
        response = client.read_response()
        (record,) = request_records(caplog)
    assert response.status == record.status == 408
    assert response.headers[REQUEST_ID_HEADER] == record.__dict__["request_id"]


def test_unexpected_error_is_a_500_and_its_traceback_only_in_the_log(
    models_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    headers = PNG | {REQUEST_ID_HEADER: "mine"}
    with serving_stub(models_folder, BrokenPredictor()) as service:
        with (
            caplog.at_level(logging.INFO, logger="service"),
            captured(structlog.processors.format_exc_info) as log,
        ):
            caplog.clear()
            response = service.post("/predict", PICTURE, headers=headers)
            records = request_records(caplog)
        count = service.metric(
            "dropserve_requests_total", route="/predict", method="POST", status="500"
        )
        assert service.get("/health/ready").status_code == 200
    sentence = "The server failed; its log has the reason under this X-Request-ID."
    check_error(response, 500, "internal_error", sentence)
    assert response.headers[REQUEST_ID_HEADER] == "mine"
    assert "no memory" not in response.text
    (failed,) = [line for line in log if line["event"] == "request failed"]
    assert (failed["request_id"], failed["path"], failed["log_level"]) == (
        "mine",
        "/predict",
        "error",
    )
    assert "RuntimeError: no memory for 1 rows" in failed["exception"]
    assert [each.status for each in records] == [500]
    assert count == 1


def test_requests_over_the_limit_are_refused_except_health_and_metrics(
    models_folder: Path,
) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, blocking, max_concurrent_requests=1) as service:
        waiting = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        blocking.wait_until_running()
        refused = service.get("/models")
        allowed = [service.get(url) for url in ("/health/live", "/health/ready", "/metrics")]
        blocking.released.set()
        assert predictions(waiting.result())
        assert service.get("/models").status_code == 200
    sentence = "The server answers as many requests as it can already; try again in a second."
    check_error(refused, 503, "overloaded", sentence)
    assert [response.status_code for response in allowed] == [200, 200, 200]
    assert (
        metric(allowed[-1].text, "dropserve_requests_in_hand") == 2
    )  # the one that waits and this


async def _send_request(app: Any, sent: list[Message]) -> Metrics:
    """Send one GET / through the middleware around `app`."""
    metrics = Metrics()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    scope["query_string"] = b""
    await RequestMiddleware(metrics, Clients(LIMITS), HeadInspector(ReverseProxies())).around(app)(
        scope, receive, send
    )
    return metrics


def test_error_after_the_response_has_begun_is_raised_to_the_server(service: Application) -> None:
    async def fails_midway(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    sent: list[Message] = []
    with pytest.raises(RuntimeError, match="half way"):
        service.portal.call(_send_request, fails_midway, sent)
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_request_without_a_response_is_counted_as_499(service: Application) -> None:
    async def sends_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    metrics = service.portal.call(_send_request, sends_nothing, [])
    text = metrics.render().decode()
    labels = {"route": "unmatched", "method": "any", "status": "499"}
    assert metric(text, "dropserve_requests_total", **labels) == 1
    assert metric(text, "dropserve_requests_in_hand") == 0


def test_middleware_passes_on_lifespan_events(service: Application) -> None:
    passed: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.append(scope["type"])

    async def send_lifespan() -> None:
        wrapped = RequestMiddleware(
            Metrics(), Clients(LIMITS), HeadInspector(ReverseProxies())
        ).around(app)
        await wrapped({"type": "lifespan"}, _unused, _unused)

    service.portal.call(send_lifespan)
    assert passed == ["lifespan"]


async def _unused(*_: Any) -> Any:
    raise NotImplementedError


def test_unknown_paths_share_one_label_in_the_metrics(models_folder: Path) -> None:
    with serving_models(models_folder) as service:
        answers = [service.get(f"/invented/{number}") for number in range(3)]
        count = service.metric(
            "dropserve_requests_total", route="unmatched", method="any", status="404"
        )
        exposed = service.get("/metrics").text
    assert all(isinstance(answer, httpx.Response) for answer in answers)
    assert count == 3
    assert "invented" not in exposed
