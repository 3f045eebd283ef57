"""Two workers behind one port: the same bytes from each, and their metrics summed."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pictures import Pixels, encode, instances
from tests.service.process import ServiceProcess, SlowRequest, service_process
from tests.service.serving import TIMEOUT_SECONDS, Application, metric


@pytest.fixture(scope="module")
def two_workers(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder, workers=2) as service:
        assert len(service.workers()) == 2
        yield service


def requests(digits: Pixels) -> list[tuple[str, bytes, str]]:
    batch = instances([encode(digit) for digit in digits[:3]])
    return [
        ("/predict", encode(digits[0]), "image/png"),
        ("/uncertainty?samples=48&seed=5", encode(digits[0]), "image/png"),
        ("/uncertainty", batch, "application/json"),
    ]


def test_workers_and_restarts_give_the_same_bytes(
    two_workers: ServiceProcess, models_folder: Path, service: Application, digits: Pixels
) -> None:
    for route, body, content_type in requests(digits):
        here = service.post(route, body, headers={"Content-Type": content_type})
        assert here.status_code == 200
        for worker in two_workers.workers():
            with two_workers.only(worker):
                assert two_workers.post(route, body, content_type).content == here.content
    for threads in ("1", "2"):
        with service_process(models_folder, "--threads", threads) as restarted:
            for route, body, content_type in requests(digits):
                here = service.post(route, body, headers={"Content-Type": content_type})
                assert restarted.post(route, body, content_type).content == here.content


class WorkerClient:
    """Sends requests to one worker at a time, and waits until the worker has counted each.

    A worker counts a request, and then logs it, after the response has gone out; stopped in
    between, it would count the request later.
    """

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._sent = len(service.logged("request"))

    def predict(self, worker: int, body: bytes) -> None:
        with self._service.only(worker):
            answer = self._service.post("/predict", body, "application/json")
            self._wait_until_counted()
        assert answer.status_code == 200

    def metrics(self, worker: int) -> str:
        with self._service.only(worker), self._service.client() as client:
            text = client.get("/metrics").text
            self._wait_until_counted()
        return text

    def wait_for(self, worker: int, name: str, value: float, **labels: str) -> None:
        """Scrape until a metric has a value: a worker reads late what the others have counted."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (found := metric(self.metrics(worker), name, **labels)) != value:
            assert time.monotonic() < deadline, (name, found, value)

    def _wait_until_counted(self) -> None:
        self._sent += 1
        self._service.wait_for("request", count=self._sent)


def test_metrics_are_summed_over_workers(models_folder: Path, digit: Pixels) -> None:
    body = instances([encode(digit)] * 3)
    with service_process(models_folder, "--log-level", "debug", workers=2) as service:
        client = WorkerClient(service)
        one, other = service.workers()
        for worker in (one, one, other, other, other):
            client.predict(worker, body)
        for each in (one, other):
            labels = {"route": "/predict", "method": "POST", "status": "200"}
            client.wait_for(each, "dropserve_requests_total", 5, **labels)
            client.wait_for(each, "dropserve_request_duration_seconds_count", 5, route="/predict")
            client.wait_for(each, "dropserve_batch_rows_sum", 15, model="digits")
            client.wait_for(each, "dropserve_requests_in_hand", 1)  # this one
            client.wait_for(each, "dropserve_queue_rows", 0, model="digits")
            client.wait_for(each, "dropserve_model_info", 1, model="digits", version="1")
        with ExitStack() as slow:
            for worker in (one, other):
                with service.only(worker):
                    slow.enter_context(SlowRequest(service, body))
            client.wait_for(
                one, "dropserve_requests_in_hand", 1
            )  # this one; the incomplete requests are not counted


def test_dead_worker_is_replaced_and_its_gauges_are_dropped(
    models_folder: Path, digit: Pixels
) -> None:
    with service_process(models_folder, "--log-level", "debug", workers=2) as service:
        first, second = service.workers()
        with service.only(first), SlowRequest(service, encode(digit)):
            os.kill(first, signal.SIGKILL)
            # The other worker, which is stopped, must not delay the detection.
            assert service.wait_for("worker died")["pid"] == first
        service.wait_for("ready", count=3)
        client = WorkerClient(service)
        for worker in service.workers():
            client.wait_for(worker, "dropserve_requests_in_hand", 1)  # this one
        assert first not in service.workers()
        assert second in service.workers()
        assert len(service.workers()) == 2
