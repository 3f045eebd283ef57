"""Around every request: its id, its log line, its count, and the answer to what nobody foresaw."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from service.http.clients import Clients, Limits
from service.http.fast_path.route_cache import RouteCache
from service.http.middleware import REQUEST_ID_HEADER, RequestMiddleware
from service.observability import logs
from service.observability.metrics import Metrics
from tests.service.bad_requests import PICTURE
from tests.service.serving import (
    PNG,
    Application,
    BrokenPredictor,
    HeldPredictor,
    check_error,
    metric,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)

LIMITS = Limits(connections=8, buffered_bytes=8, requests=8)
GIVEN = re.compile(r"[0-9a-f]{32}")

REQUESTS = [("GET", "/health/live"), ("POST", "/predict"), ("GET", "/nowhere"), ("PUT", "/metrics")]


@pytest.mark.parametrize(("method", "url"), REQUESTS)
@pytest.mark.parametrize("given", ["a", "A-z_0:9.", "x" * 128])
def test_a_well_formed_request_id_is_taken_over(
    service: Application, method: str, url: str, given: str
) -> None:
    response = service.request(method, url, headers={REQUEST_ID_HEADER: given})
    assert response.headers.get_list(REQUEST_ID_HEADER) == [given]


@pytest.mark.parametrize(("method", "url"), REQUESTS)
@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", 'a"b', "a\x7f", "é"])
def test_any_other_is_replaced_by_a_new_one(
    service: Application, method: str, url: str, given: str | None
) -> None:
    headers = {} if given is None else {REQUEST_ID_HEADER: given.encode()}
    found = [service.request(method, url, headers=headers) for _ in range(2)]
    ids = [response.headers[REQUEST_ID_HEADER] for response in found]
    assert all(GIVEN.fullmatch(each) for each in ids)
    assert ids[0] != ids[1]


def captured(*processors: Any) -> Any:
    return capture_logs(processors=[logs.add_request_id, *processors])


def request_lines(log: list[Any]) -> list[Any]:
    return [line for line in log if line["event"] == "request"]


def test_every_request_is_one_line_of_the_log(service: Application) -> None:
    with captured() as log:
        service.get("/models?x=1", headers={REQUEST_ID_HEADER: "one"})
        service.post("/predict", PICTURE, headers=PNG | {REQUEST_ID_HEADER: "two"})
        service.get("/health/live", headers={REQUEST_ID_HEADER: "three"})
    lines = request_lines(log)
    assert [
        (line["request_id"], line["method"], line["path"], line["status"], line["log_level"])
        for line in lines
    ] == [
        ("one", "GET", "/models", 400, "info"),
        ("two", "POST", "/predict", 200, "info"),
        ("three", "GET", "/health/live", 200, "debug"),
    ]
    assert all(line["milliseconds"] > 0 for line in lines)


def test_an_unforeseen_error_is_a_500_without_a_trace_and_a_line_with_one(
    models_folder: Path,
) -> None:
    headers = PNG | {REQUEST_ID_HEADER: "mine"}
    with serving_stub(models_folder, BrokenPredictor()) as service:
        with captured(structlog.processors.format_exc_info) as log:
            response = service.post("/predict", PICTURE, headers=headers)
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
    assert [line["status"] for line in request_lines(log)] == [500]
    assert count == 1


def test_requests_over_the_limit_are_refused_but_health_and_metrics_answer(
    models_folder: Path,
) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, held, max_concurrent_requests=1) as service:
        waiting = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        held.wait_until_running()
        refused = service.get("/models")
        allowed = [service.get(url) for url in ("/health/live", "/health/ready", "/metrics")]
        held.permission.set()
        assert predictions(waiting.result())
        assert service.get("/models").status_code == 200
    sentence = "The server answers as many requests as it can already; try again in a second."
    check_error(refused, 503, "overloaded", sentence)
    assert [response.status_code for response in allowed] == [200, 200, 200]
    assert metric(allowed[-1].text, "dropserve_requests_in_hand") == 2  # the held one and this


async def _observe(app: Any, sent: list[Message]) -> Metrics:
    """Send one GET / through the middleware around `app`."""
    metrics = Metrics()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    scope["query_string"] = b""
    await RequestMiddleware(app, RouteCache([]), metrics, Clients(LIMITS))(scope, receive, send)
    return metrics


def test_an_error_after_the_answer_has_begun_cuts_the_connection(service: Application) -> None:
    async def breaks_off(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    sent: list[Message] = []
    with pytest.raises(RuntimeError, match="half way"):
        service.portal.call(_observe, breaks_off, sent)
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_a_request_without_an_answer_counts_as_hung_up(service: Application) -> None:
    async def says_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    metrics = service.portal.call(_observe, says_nothing, [])
    text = metrics.expose().decode()
    labels = {"route": "unmatched", "method": "any", "status": "499"}
    assert metric(text, "dropserve_requests_total", **labels) == 1
    assert metric(text, "dropserve_requests_in_hand") == 0


def test_what_is_no_http_request_is_passed_on(service: Application) -> None:
    passed: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.append(scope["type"])

    async def send_lifespan() -> None:
        observed = RequestMiddleware(app, RouteCache([]), Metrics(), Clients(LIMITS))
        await observed({"type": "lifespan"}, _unused, _unused)

    service.portal.call(send_lifespan)
    assert passed == ["lifespan"]


async def _unused(*_: Any) -> Any:
    raise NotImplementedError


def test_invented_paths_do_not_grow_the_metrics(models_folder: Path) -> None:
    with serving_models(models_folder) as service:
        answers = [service.get(f"/invented/{number}") for number in range(3)]
        count = service.metric(
            "dropserve_requests_total", route="unmatched", method="any", status="404"
        )
        exposed = service.get("/metrics").text
    assert all(isinstance(answer, httpx.Response) for answer in answers)
    assert count == 3
    assert "invented" not in exposed
