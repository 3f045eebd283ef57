"""A real Prometheus stores the exemplars of a real service of two workers."""

from pathlib import Path

import pytest

from tests.monitoring.prometheus_process import prometheus_process
from tests.pictures import Pixels, encode
from tests.service.process import service_process
from tests.service.serving import PNG
from tests.service.tracing.collector import collecting

pytestmark = pytest.mark.prometheus

TRACES = [f"{number:032x}" for number in range(1, 9)]


def test_exemplar_leads_from_a_latency_to_its_trace(
    models_folder: Path, tmp_path: Path, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with service_process(models_folder, workers=2) as service:
            assert service.wait_for("tracing")["sampler"] == "parentbased_always_on"
            with prometheus_process(tmp_path, service.url) as prometheus:
                with service.client() as client:
                    for trace in TRACES:
                        headers = PNG | {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
                        client.post("/predict", content=encode(digit), headers=headers)
                name = 'dropserve_request_duration_seconds_bucket{route="/predict"}'
                prometheus.wait_until("No exemplar", lambda: bool(prometheus.exemplars(name)))
                found = prometheus.exemplars(name)
            spans = collector.wait_for({"POST /predict": len(TRACES)})
    assert {each["labels"]["trace_id"] for each in found} <= set(TRACES)
    assert {each.trace_id for each in spans} == set(TRACES)
