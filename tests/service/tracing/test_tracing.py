"""The traces of a service, as a collector gets them."""

import gc
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service.engine.pending_requests import PendingRequest
from service.engine.request_scheduling import Batch
from service.engine.traced_runs import note_in_traces
from service.observability import log_format
from service.observability.request_log import RequestRecord
from service.tracing.request_trace import RequestTrace
from service.traffic_log.log_reading import read_lines
from tests.pictures import Pixels, encode
from tests.service.listening import Listening, listening
from tests.service.serving import (
    JSON,
    PNG,
    Application,
    BlockingPredictor,
    BrokenPredictor,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)
from tests.service.tracing.collector import Collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SERVER, INTERNAL, ERROR = 2, 1, 2
MARK = "1" * 32
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


def infer_body(digit: Pixels) -> bytes:
    data = (digit.astype(np.float32) / 255).ravel().tolist()
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": data}
    return orjson.dumps({"inputs": [tensor]})


def test_request_has_a_span_and_one_for_each_of_its_stages(
    traced: Listening, shared_collector: Collector, digit: Pixels
) -> None:
    collector = shared_collector
    collector.clear()
    response = traced.application.post(
        "/uncertainty?samples=8", encode(digit), headers=PNG | SAMPLED
    )
    assert response.status_code == 200
    spans = collector.wait_for({"head": 1, "POST /uncertainty": 1})
    by_name = {each.name: each for each in spans}
    request = by_name.pop("POST /uncertainty")
    assert list(by_name) == ["decode", "queue", "trunk", "head"]
    assert {each.trace_id for each in spans} == {TRACE}
    assert (request.kind, request.parent_id, request.status) == (SERVER, PARENT, 0)
    assert {each.parent_id for each in by_name.values()} == {request.span_id}
    assert {each.kind for each in by_name.values()} == {INTERNAL}
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/uncertainty",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/uncertainty",
        "url.query": "samples=8",
        "network.protocol.version": "1.1",
        "user_agent.original": response.request.headers["user-agent"],
        "dropserve.request_id": response.headers["X-Request-ID"],
        "dropserve.model": "digits-mc",
        "dropserve.version": "1",
        "dropserve.images": 1,
    }
    assert by_name["trunk"].attributes == {"dropserve.run.images": 1, "dropserve.run.requests": 1}
    times = [(each.start, each.end) for each in by_name.values()]
    ordered = [request.start, *[time for each in times for time in each], request.end]
    assert ordered == sorted(ordered)
    assert request.resource["service.name"] == "dropserve"
    assert response.headers["traceresponse"] == f"00-{TRACE}-{request.span_id}-01"


@pytest.mark.parametrize(
    ("url", "stages"),
    [
        ("/predict", ["decode", "queue", "trunk"]),
        ("/uncertainty", ["decode", "queue", "trunk", "head"]),
        ("/v2/models/digits/infer", ["decode", "queue", "trunk"]),
        ("/v2/models/digits-mc/infer", ["decode", "queue", "trunk", "head"]),
        ("/v1/models/digits:predict", ["decode", "queue", "trunk"]),
        ("/occlusion", ["decode", "queue", "trunk"]),
    ],
)
def test_both_paths_make_the_same_spans(
    traced: Listening, shared_collector: Collector, digit: Pixels, url: str, stages: list[str]
) -> None:
    rows = orjson.dumps({"instances": (digit[None] / 255).tolist()})
    body = {"/v2": infer_body(digit), "/v1": rows}.get(url[:3], encode(digit))
    kind = PNG if body == encode(digit) else JSON
    shared_collector.clear()
    over_asgi = traced.application.post(url, body, headers=kind)
    client = traced.connect()
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind['Content-Type']}\r\n"
    client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    over_port = client.read_response()
    assert (over_asgi.status_code, over_port.status) == (200, 200), over_asgi.text
    spans = shared_collector.wait_for({stages[-1]: 2})
    requests = [each for each in spans if each.kind == SERVER]
    assert len({each.trace_id for each in requests}) == 2
    for request in requests:
        children = [each.name for each in spans if each.parent_id == request.span_id]
        assert children[: len(stages)] == stages
        assert request.parent_id == ""
        assert request.attributes["url.scheme"] == "http"


def test_requests_of_one_run_have_a_span_of_it_each_and_link_to_each_other(
    collector: Collector, models_folder: Path, digits: Pixels
) -> None:
    predictor = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, predictor) as service:
        first = service.submit("POST", "/predict", content=encode(digits[0]), headers=PNG)
        predictor.wait_until_running()
        waiting = [
            service.submit("POST", "/predict", content=encode(each), headers=PNG)
            for each in digits[1:4]
        ]
        while service.metric("dropserve_queue_rows", model="digits") < 3:
            pass
        predictor.released.set()
        answers = [each.result() for each in (first, *waiting)]
        spans = collector.wait_for({"trunk": 4})
    assert all(each.status_code == 200 for each in answers)
    own = {each.span_id: (each.trace_id, each.span_id) for each in spans if each.kind == SERVER}
    shared = [each for each in spans if each.attributes.get("dropserve.run.requests") == 3]
    assert len(shared) == 3
    requests = {each.parent_id for each in shared}
    for trunk in shared:
        assert trunk.attributes["dropserve.run.images"] == 3
        others = {own[each] for each in requests - {trunk.parent_id}}
        assert set(trunk.links) == others
    starts = [each.start for each in shared]
    assert max(starts) - min(starts) < 1_000_000  # nanoseconds: the clocks are read for each


def test_failures_are_told_as_the_conventions_have_it(
    collector: Collector, models_folder: Path, digit: Pixels
) -> None:
    with serving_stub(models_folder, BrokenPredictor()) as service:
        assert service.post("/predict", encode(digit), headers=PNG).status_code == 500
        assert service.post("/predict", b"no picture", headers=PNG).status_code == 400
        assert service.request("BREW", f"/{'x' * 2000}?{'y' * 500}").status_code == 404
        service.get("/health/live", headers=SAMPLED)
        spans = collector.wait_for({"POST /predict": 2, "HTTP": 1})
    requests = [each for each in spans if each.kind == SERVER]
    broken, bad, unknown = requests
    assert (broken.status, broken.attributes["error.type"]) == (ERROR, "500")
    assert (bad.status, bad.attributes["http.response.status_code"]) == (0, 400)
    assert "error.type" not in bad.attributes
    assert unknown.attributes["http.request.method"] == "_OTHER"
    assert unknown.attributes["http.request.method_original"] == "BREW"
    assert "http.route" not in unknown.attributes
    assert all(len(str(each)) <= 256 for each in unknown.attributes.values())
    assert [each.name for each in spans if each.trace_id == bad.trace_id][1:] == ["decode"]


def test_trace_id_is_in_log_lines_traffic_log_and_exemplars(
    collector: Collector,
    models_folder: Path,
    tmp_path: Path,
    digit: Pixels,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        serving_models(models_folder, traffic_log=tmp_path / "log") as service,
        caplog.at_level(logging.INFO, logger="service"),
    ):
        headers = PNG | SAMPLED | {"tracestate": "congo=t61rcWkgMzE"}
        predictions(service.post("/predict", encode(digit), headers=headers))
        spans = collector.wait_for({"trunk": 1})
        records = [each for each in caplog.records if isinstance(each, RequestRecord)]
        response = service.get("/metrics", headers=OPENMETRICS)
        plain = service.get("/metrics")
        while service.metric("dropserve_trace_spans_total", outcome="sent") < 4:
            pass
    assert {each.state for each in spans} == {"congo=t61rcWkgMzE"}
    (record,) = (each for each in records if each.path == "/predict")
    assert record.__dict__["trace_id"] == TRACE
    (line,) = (orjson.loads(text) for text, _ in read_lines(tmp_path / "log"))
    assert (line["trace_id"], line["request_id"]) == (TRACE, record.__dict__["request_id"])
    assert response.headers["Content-Type"].startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert " # {" not in plain.text
    (exemplar,) = exemplars(response.text)
    assert exemplar.labels == {"trace_id": TRACE}
    assert 0 < exemplar.value < 60


def exemplars(openmetrics: str) -> list[Any]:
    families = text_string_to_metric_families(openmetrics)  # type: ignore[no-untyped-call]
    return [each.exemplar for family in families for each in family.samples if each.exemplar]


def test_trace_id_of_an_untraced_request_stands_in_log_lines_where_it_came_with_one(
    service: Application, digit: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="service"), capture_logs([log_format.add_ids]):
        given = service.post("/predict", encode(digit), headers=PNG | SAMPLED)
        service.post("/predict", encode(digit), headers=PNG | {"traceparent": "00-0-0-01"})
        records = [each for each in caplog.records if isinstance(each, RequestRecord)]
    assert [each.__dict__.get("trace_id") for each in records] == [TRACE, None]
    assert "traceresponse" not in given.headers


@pytest.mark.parametrize("as_json", [True, False])
def test_request_line_has_the_trace_id(as_json: bool) -> None:
    fields = {"method": "GET", "path": "/", "status": 200, "milliseconds": 0.5}
    record = RequestRecord(logging.INFO, **fields, request_id="a", trace_id=TRACE)  # type: ignore[arg-type]
    line = record.plain_line(as_json=as_json)
    assert line is not None
    assert json.loads(line)["trace_id"] == TRACE if as_json else f" trace_id={TRACE}" in line


def test_requests_that_are_not_sampled_have_neither_span_nor_header(
    collector: Collector, models_folder: Path, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits of mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me")
    with serving_models(models_folder) as service:
        unsampled = service.post("/predict", encode(digit), headers=PNG)
        service.post("/predict", encode(digit), headers=PNG | SAMPLED)
        spans = collector.wait_for({"trunk": 1})
    assert "traceresponse" not in unsampled.headers
    assert {each.trace_id for each in spans} == {TRACE}
    assert spans[0].resource["service.name"] == "digits of mine"
    assert spans[0].resource["deployment.environment.name"] == "test"
    assert {name.lower(): value for name, value in collector.headers[0].items()}["x-tenant"] == "me"


def test_collector_that_hangs_or_refuses_delays_no_request_and_no_shutdown(
    collector: Collector, models_folder: Path, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tracing.span_export.CLOSING_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    collector.released.clear()
    with serving_models(models_folder) as service:
        for _ in range(20):
            predictions(service.post("/predict", encode(digit), headers=PNG))
        while not (dropped := service.metric("dropserve_trace_spans_total", outcome="dropped")):
            pass
    assert dropped % 4 == 0  # whole requests
    assert collector.names() == []


def test_spans_that_the_collector_refuses_are_counted(
    collector: Collector, models_folder: Path, digit: Pixels
) -> None:
    collector.status = 400
    with serving_models(models_folder) as service:
        predictions(service.post("/predict", encode(digit), headers=PNG))
        while service.metric("dropserve_trace_spans_total", outcome="failed") < 4:
            pass


def test_trace_ids_are_new_and_well_formed(traced: Listening, digit: Pixels) -> None:
    service = traced.application
    found = [service.post("/predict", encode(digit), headers=PNG).headers for _ in range(3)]
    headers = [each["traceresponse"] for each in found]
    assert len({each[3:35] for each in headers}) == 3
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", each) for each in headers)


def test_request_that_has_waited_for_another_is_not_taken_for_that(
    collector: Collector,
    models_folder: Path,
    digit: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    body = encode(digit)
    first = f"traceparent: {SAMPLED['traceparent']}\r\n"
    for url in ("/predict", "/predict?"):  # the fast path, and ASGI
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="service"),
            serving_models(models_folder) as service,
            listening(service) as listener,
        ):
            client = listener.connect()
            client.send(post(url, body, first) + post(url, body))
            headers = [client.read_response().headers for _ in range(2)]
        records = [each for each in caplog.records if isinstance(each, RequestRecord)]
        assert ["traceresponse" in each for each in headers] == [True, False]
        assert [each.__dict__.get("trace_id") for each in records] == [TRACE, None]
    assert collector.names().count("POST /predict") == 2


def post(url: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_traces_of_a_run_are_freed_without_the_garbage_collector() -> None:
    def run() -> None:
        traces = [RequestTrace(MARK, None, ()) for _ in range(3)]
        requests = [PendingRequest(np.zeros((1, 1, 8, 8), np.float32), None, 1.0) for _ in traces]
        for request, trace in zip(requests, traces, strict=True):
            request.trace = trace
        note_in_traces(Batch(requests, len(requests)))
        assert [len(each.runs) for each in traces] == [1] * 3

    run()
    found = [each for each in gc.get_objects() if isinstance(each, RequestTrace)]
    assert not any(each.trace_id == MARK for each in found)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "0")],
)
def test_service_starts_although_the_sdk_refuses_a_variable(
    collector: Collector,
    models_folder: Path,
    digit: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with capture_logs() as lines, serving_models(models_folder) as service:
        answer = service.post("/predict", encode(digit), headers=PNG | SAMPLED)
    assert answer.status_code == 200
    assert "traceresponse" not in answer.headers
    (line,) = (each for each in lines if each["event"] == "no traces")
    assert str(line["problem"]).startswith("OpenTelemetry's SDK refuses what the variables OTEL_…")
    assert collector.names() == []
