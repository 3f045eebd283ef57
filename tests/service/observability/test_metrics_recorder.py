"""Tests of GET /metrics with one process; tests/service/test_workers.py has several."""

import re
from pathlib import Path

import numpy as np
import onnxruntime

from service import API_VERSION
from service.observability.metrics_recorder import Metrics
from tests.pictures import Pixels, encode, instances
from tests.service.serving import (
    JSON,
    PNG,
    BlockingPredictor,
    metric,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)

FAMILIES = {
    "dropserve_requests": "counter",
    "dropserve_request_duration_seconds": "histogram",
    "dropserve_requests_in_hand": "gauge",
    "dropserve_batch_rows": "histogram",
    "dropserve_queue_rows": "gauge",
    "dropserve_stage_seconds": "histogram",
    "dropserve_model_info": "gauge",
    "dropserve_predictive_entropy_nats": "histogram",
    "dropserve_mutual_information_nats": "histogram",
}


def test_metrics_expose_every_family_with_type_and_help() -> None:
    lines = Metrics().render().decode().splitlines()
    for family, kind in FAMILIES.items():
        name = f"{family}_total" if kind == "counter" else family
        assert f"# TYPE {name} {kind}" in lines
        (help_line,) = [line for line in lines if line.startswith(f"# HELP {name} ")]
        assert help_line.endswith(".")


def test_dropped_log_lines_are_counted_as_they_grow() -> None:
    dropped = [3]  # before the service counted
    metrics = Metrics()
    metrics.deferred.add_counter_source(metrics.log_lines_dropped, lambda: dropped[0])
    rendered = []
    for total in (3, 5, 5, 0):  # logging is configured anew, and begins at 0
        dropped[0] = total
        rendered.append(metrics.render().decode())
    counts = [metric(each, "dropserve_log_lines_dropped_total") for each in rendered]
    assert counts == [0, 2, 2, 2]


def test_build_info_names_the_versions_once() -> None:
    (line,) = re.findall(r"^dropserve_build_info\{.*", Metrics().render().decode(), re.MULTILINE)
    assert f'version="{API_VERSION}"' in line
    assert f'onnxruntime="{onnxruntime.__version__}"' in line
    assert line.endswith(" 1.0")


def test_two_metrics_objects_do_not_share_series() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels("/predict", "POST", "200").inc()
    assert b'route="/predict"' in one.render()
    assert b'route="/predict"' not in other.render()


def test_requests_are_counted_and_timed_by_route_and_status(
    models_folder: Path, digit: Pixels
) -> None:
    with serving_models(models_folder) as service:
        for _ in range(3):
            assert predictions(service.post("/predict", encode(digit), headers=PNG))
        service.post("/predict?samples=1", encode(digit), headers=PNG)
        service.get("/models/digits")
        service.get("/models/cats")
        service.get("/docs")
        text = service.get("/metrics").text

        def requests(route: str, method: str, status: int) -> float:
            labels = {"route": route, "method": method, "status": str(status)}
            return service.metric("dropserve_requests_total", **labels)

        assert requests("/predict", "POST", 200) == 3
        assert requests("/predict", "POST", 400) == 1
        assert requests("/models/{name}", "GET", 200) == 1
        assert requests("/models/{name}", "GET", 404) == 1
        assert service.metric("dropserve_request_duration_seconds_count", route="/predict") == 4
        assert service.metric("dropserve_request_duration_seconds_sum", route="/predict") > 0
        assert service.metric("dropserve_model_info", model="digits", version="1") == 1
    assert "cats" not in text


def test_uncertainty_predictions_and_stages_are_observed(
    models_folder: Path, digits: Pixels
) -> None:
    body = instances([encode(digit) for digit in digits[:5]])
    with serving_models(models_folder) as service:
        answers = predictions(service.post("/uncertainty", body, headers=JSON))
        labels = {"model": "digits", "version": "1"}
        for name in ("predictive_entropy", "mutual_information"):
            family = f"dropserve_{name}_nats"
            assert service.metric(f"{family}_count", **labels) == 5
            total = service.metric(f"{family}_sum", **labels)
            np.testing.assert_allclose(total, sum(answer[name] for answer in answers))
        assert service.metric("dropserve_batch_rows_sum", model="digits") == 5
        for stage in ("decode", "trunk", "head"):
            assert service.metric("dropserve_stage_seconds_count", stage=stage) == 1
            assert service.metric("dropserve_stage_seconds_sum", stage=stage) > 0


def test_queue_rows_gauge_shows_waiting_images(models_folder: Path, digit: Pixels) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    body = instances([encode(digit)] * 3)
    with serving_stub(models_folder, blocking) as service:
        running = service.submit("POST", "/predict", content=body, headers=JSON)
        blocking.wait_until_running()
        assert service.metric("dropserve_queue_rows", model="digits") == 0
        waiting = service.submit("POST", "/predict", content=body, headers=JSON)
        while service.metric("dropserve_queue_rows", model="digits") == 0:
            pass  # its images are being decoded
        assert service.metric("dropserve_queue_rows", model="digits") == 3
        blocking.released.set()
        assert len(predictions(running.result())) == len(predictions(waiting.result())) == 3
        assert service.metric("dropserve_queue_rows", model="digits") == 0
