"""The wiring: routes, their description, start and stop."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import API_VERSION, schemas
from service.app import create_app, create_worker_app
from service.decoding import FORM_TYPE, JSON_TYPE
from service.images import IMAGE_TYPES
from service.settings import ServiceSettings
from tests.service.bad_requests import PICTURE
from tests.service.serving import (
    PNG,
    Application,
    HeldPredictor,
    WatchedRepository,
    predictions,
    real_predictor,
    serving,
    serving_stub,
    wait,
)

ANSWERS = {
    ("post", "/predict"): schemas.Predictions,
    ("post", "/uncertainty"): schemas.UncertainPredictions,
    ("get", "/models"): schemas.Models,
    ("get", "/models/{name}"): schemas.ModelCard,
    **{
        ("post", f"/models/{{name}}/{action}"): schemas.ModelSummary
        for action in ("canary", "promote", "rollback", "pin", "follow")
    },
    ("get", "/health/live"): schemas.Live,
    ("get", "/health/ready"): schemas.Ready,
}
ERRORS = {
    ("post", "/predict"): {400, 404, 408, 413, 415, 500, 503, 504},
    ("post", "/uncertainty"): {400, 404, 408, 413, 415, 500, 503, 504},
    ("get", "/models"): {400, 500},
    ("get", "/models/{name}"): {400, 404, 500, 503},
    **{
        ("post", f"/models/{{name}}/{action}"): {400, 403, 404, 409, 500, 503, 504}
        for action in ("canary", "promote", "rollback", "pin", "follow")
    },
    ("get", "/health/live"): {400, 500},
    ("get", "/health/ready"): {400, 500, 503},
}


@pytest.fixture(scope="module")
def description() -> Any:
    return create_app(ServiceSettings()).openapi()


def operations(description: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def schema_of(content: Any) -> str:
    return str(content["content"][JSON_TYPE]["schema"]["$ref"].rpartition("/")[2])


def test_the_description_is_served(service: Application, description: Any) -> None:
    assert service.get("/openapi.json").json() == description
    assert (description["info"]["title"], description["info"]["version"]) == (
        "Dropserve",
        API_VERSION,
    )


def test_every_route_is_described(description: Any) -> None:
    found = {(method, path) for method, path, _ in operations(description)}
    assert found == set(ANSWERS) | {("get", "/metrics")}
    assert all(operation["summary"] for _, _, operation in operations(description))


@pytest.mark.parametrize("key", ANSWERS, ids=" ".join)
def test_every_answer_and_every_error_is_described(description: Any, key: tuple[str, str]) -> None:
    method, path = key
    responses = description["paths"][path][method]["responses"]
    assert schema_of(responses.pop("200")) == ANSWERS[key].__name__
    assert set(responses) == {str(status) for status in ERRORS[key]} | {"default"}
    assert {schema_of(response) for response in responses.values()} == {"Error"}


def test_the_described_shapes_are_those_that_the_tests_check(description: Any) -> None:
    shapes = description["components"]["schemas"]
    assert shapes["Error"]["required"] == ["error", "code"]
    assert shapes["Error"]["additionalProperties"] is False
    assert not {name for name in shapes if "ValidationError" in name}


@pytest.mark.parametrize("path", ["/predict", "/uncertainty"])
def test_bodies_and_parameters_are_described(description: Any, path: str) -> None:
    operation = description["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert operation["requestBody"]["required"]
    assert set(content) == {JSON_TYPE, FORM_TYPE, *IMAGE_TYPES}
    assert content[JSON_TYPE]["schema"]["required"] == ["instances"]
    expected = {"model", "version"}
    if path == "/uncertainty":
        expected |= {"samples", "seed", "method", "design", "coverage", "sets", "max_risk"}
    assert {parameter["name"] for parameter in operation["parameters"]} == expected
    assert all(parameter["description"] for parameter in operation["parameters"])


def test_switched_off_uncertainty_is_not_described() -> None:
    paths = create_app(ServiceSettings(uncertainty=False)).openapi()["paths"]
    assert set(paths) == {path for _, path in ANSWERS} - {"/uncertainty"} | {"/metrics"}


def test_a_worker_takes_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr("service.logs.configure", lambda *given: configured.append(given))
    monkeypatch.setenv("DROPSERVE_UNCERTAINTY", "false")
    monkeypatch.setenv("DROPSERVE_LOG_FORMAT", "json")
    app = create_worker_app()
    assert "/uncertainty" not in app.openapi()["paths"]
    assert configured == [("info", "json")]


def test_nothing_is_opened_before_the_application_runs(tmp_path: Path) -> None:
    settings = ServiceSettings(models_folder=tmp_path)
    repository = WatchedRepository(settings)
    app = create_app(settings, repository)
    assert not repository.loaded.is_set()
    with serving(app):
        wait(repository.loaded)


def test_stopping_ends_the_threads_it_has_started(models_folder: Path) -> None:
    settings = ServiceSettings(models_folder=models_folder)
    repository = WatchedRepository(settings)
    before = set(threading.enumerate())
    with serving(create_app(settings, repository)) as service:
        wait(repository.loaded)
        assert predictions(service.post("/predict", PICTURE, headers=PNG))
        started = set(threading.enumerate()) - before
        (inference,) = [each for each in started if each.name.startswith("inference-digits")]
        assert inference.is_alive()
    assert not inference.is_alive()


def test_stopping_answers_what_is_queued(models_folder: Path) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, held) as service:
        running = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        held.wait_until_running()
        waiting = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        while service.metric("dropserve_queue_rows", model="digits") == 0:
            pass  # its image is being decoded
        held.permission.set()
    assert predictions(running.result()) == predictions(waiting.result())
