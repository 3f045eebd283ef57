"""A real Prometheus scrapes a real service; causes of alerts are made one after another."""

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from deploy.monitoring.dashboard import FILE
from service.control.rollout_client import main as control
from service.keys.key_file_changes import add_key
from tests.bundles import copy_bundle
from tests.certificates import Authority
from tests.monitoring.monitoring_files import alerts, metric_names
from tests.monitoring.prometheus_process import WINDOW, PrometheusProcess, prometheus_process
from tests.pictures import encode, instances
from tests.service.process import ServiceProcess, service_process
from tests.service.serving import JSON
from training.data.dataset import Split

pytestmark = pytest.mark.prometheus

AUTHORITY = Authority()
CLIENTS = 8
CONCURRENT = 2
"""Requests that each worker takes at once: fewer than there are clients in an overload."""
OF_A_MODELS_SOURCE = "dropserve_models_source_last_success_timestamp_seconds"
"""The service has no source here."""
HEAVY = 512
"""Images of a request of which 64 at once keep a fast processor busy for well over a second."""


@contextmanager
def traffic(
    service: ServiceProcess, route: str, body: bytes, clients: int = 1, key: str = ""
) -> Iterator[None]:
    """Send a body again and again, from several clients at once."""
    trusting = AUTHORITY.client_context()
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=service.url, timeout=60, verify=trusting) as http:
            while not stop.is_set():
                http.post(route, content=body, headers={**JSON, "X-API-Key": key})

    threads = [threading.Thread(target=send) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def damaged(bundle: Path, models: Path, version: int) -> None:
    """Publish a copy of a bundle whose trunk is cut short."""
    draft = copy_bundle(bundle, models.parent / f"draft-{version}", version=version)
    file = draft / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    (models / "digits").mkdir(parents=True, exist_ok=True)
    draft.rename(models / "digits" / str(version))


def shadow(service: ServiceProcess, bundle: Path, models: Path, version: int) -> None:
    """Publish a copy of a bundle as a shadow."""
    port = ("--port", str(service.port))
    assert control(["pin", "digits", "--version", "1", *port]) == 0
    copy_bundle(bundle, models, version=version)
    assert control(["shadow", "digits", "--version", str(version), *port]) == 0


def label_wrongly(service: ServiceProcess, body: bytes, split: Split, key: str) -> None:
    """Give the answers to a body of images the labels of the next class."""
    headers = {**JSON, "X-API-Key": key, "X-Request-ID": "labelled-wrongly"}
    images = json.loads(body)["instances"]
    labels = [
        {"request_id": "labelled-wrongly", "image": number, "label": str((label + 1) % 10)}
        for number, label in enumerate(split.labels[: len(images)].tolist())
    ]
    with httpx.Client(base_url=service.url, verify=AUTHORITY.client_context()) as http:
        http.post("/uncertainty", content=body, headers=headers).raise_for_status()
        http.post("/feedback", json=labels, headers={"X-API-Key": key}).raise_for_status()


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    copy_bundle(bundle_folder, folder)
    return folder


def check_queries(prometheus: PrometheusProcess) -> None:
    """Hold every query of the dashboard, and every rule, to giving data."""
    panels = json.loads(FILE.read_text())["panels"]
    written = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    queries = [each.replace("$__rate_interval", WINDOW).replace("$model", ".*") for each in written]
    queries += [rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"]
    names = {name for rule in alerts().values() for name in metric_names(rule["expr"])}
    queries += sorted(names - {OF_A_MODELS_SOURCE})
    assert len(queries) > 40
    for query in queries:
        assert "$" not in query
        prometheus.wait_for_data(query)
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}


def test_damage_strangers_wrong_keys_and_overload_fire_their_alerts_and_every_query_has_data(
    models: Path, bundle_folder: Path, held_out: Split, tmp_path: Path
) -> None:
    digits = instances([encode(image[0]) for image in held_out.images[:32]])
    noise = np.random.default_rng(0).integers(0, 256, (32, 8, 8), dtype=np.uint8)
    strangers = instances([encode(image) for image in noise])
    limit = ["--max-concurrent-requests", str(CONCURRENT), "--watch-seconds", "0.2"]
    tls, ca = AUTHORITY.issue(tmp_path, days=30).options, AUTHORITY.write(tmp_path)
    keys = tmp_path / "keys.json"
    key = add_key(keys, "alice", frozenset({"predict"}), None)
    for_prometheus = add_key(keys, "prometheus", frozenset({"metrics"}), None)
    options = [*limit, *tls, "--api-keys-file", str(keys)]
    options += ["--traffic-log", str(tmp_path / "traffic")]
    options += ["--feedback", str(tmp_path / "feedback.db")]

    def sending(route: str, body: bytes, clients: int = 1) -> AbstractContextManager[None]:
        return traffic(service, route, body, clients, key)

    with (
        service_process(models, *options, workers=2) as service,
        prometheus_process(tmp_path, service.url, ca, for_prometheus) as prometheus,
    ):
        with sending("/predict", digits), sending("/uncertainty", digits):
            name = "job_model_version:dropserve_abstentions:ratio_rate15m"
            prometheus.wait_for_data(name)
            assert prometheus.firing() == {}

            damaged(bundle_folder, models, version=2)
            summary = prometheus.wait_for_alert("DropserveVersionRefused")
            assert summary.startswith("digits version 2 was refused")

        label_wrongly(service, digits, held_out, key)
        assert "digits version 1" in prometheus.wait_for_alert("DropservePromiseBroken")

        with sending("/uncertainty", strangers):
            assert "digits version 1" in prometheus.wait_for_alert("DropserveDrift")
            prometheus.wait_for_alert("DropserveAbstentionRateHigh")
            shadow(service, bundle_folder, models, version=3)
            check_queries(prometheus)
        assert "DropserveOverloaded" not in prometheus.firing()

        with traffic(service, "/predict", digits, key="guessed"):
            prometheus.wait_for_alert("DropserveWrongKeys")

        AUTHORITY.issue(tmp_path, days=3)  # taken in place of the one before
        assert "ends in 2d 23h" in prometheus.wait_for_alert("DropserveCertificateExpires")

        with sending("/uncertainty?samples=500", digits, clients=CLIENTS):
            prometheus.wait_for_alert("DropserveOverloaded")

        service.end()
        prometheus.wait_for_alert("DropserveDown")


def test_a_damaged_bundle_alone_fires_that_nothing_serves(
    bundle_folder: Path, tmp_path: Path
) -> None:
    damaged(bundle_folder, tmp_path / "models", version=1)
    service = ServiceProcess(tmp_path / "models")
    try:
        service.wait_until_listening()
        with prometheus_process(tmp_path, service.url) as prometheus:
            prometheus.wait_for_alert("DropserveNothingServes")
            prometheus.wait_for_alert("DropserveVersionRefused")
    finally:
        service.end()


def test_a_file_of_keys_that_others_may_change_fires_that_it_cannot_be_read(
    models: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    for_prometheus = add_key(keys, "prometheus", frozenset({"metrics"}), None)
    with (
        service_process(models, "--api-keys-file", str(keys)) as service,
        prometheus_process(tmp_path, service.url, key=for_prometheus) as prometheus,
    ):
        prometheus.wait_for_data("dropserve_keys_unreadable == 0")
        keys.chmod(0o620)
        prometheus.wait_for_alert("DropserveKeysUnreadable")
        keys.chmod(0o600)
        prometheus.wait_until("It goes on firing.", lambda: prometheus.firing() == {})


def test_more_work_than_processors_fires_that_requests_wait_and_answers_are_late(
    models: Path, held_out: Split, tmp_path: Path
) -> None:
    images = [encode(image[0]) for image in held_out.images[:32]]
    with (
        service_process(models, "--max-images", str(HEAVY)) as service,
        prometheus_process(tmp_path, service.url) as prometheus,
    ):
        route = "/uncertainty?samples=1024"
        with traffic(service, route, instances(images), clients=64):
            prometheus.wait_for_alert("DropserveSaturated")
        with traffic(service, route, instances(images * (HEAVY // len(images))), clients=64):
            prometheus.wait_for_alert("DropserveLatencyHigh")
        assert "DropserveErrorRatioHigh" not in prometheus.firing()
