"""The wiring: routes, their description, start and stop."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from service import API_VERSION
from service.api import schemas
from service.api.open_inference import LENGTH_HEADER
from service.api.routes import NamedRoute
from service.app import create_app, create_worker_app
from service.codecs.image_bodies import FORM_TYPE, JSON_TYPE
from service.sandbox.image_reader import IMAGE_TYPES
from service.settings import ServiceSettings
from tests.service.bad_requests import PICTURE
from tests.service.serving import (
    MAX_SAMPLES,
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
        for action in ("canary", "promote", "rollback", "pin", "follow", "default")
    },
    ("get", "/health/live"): schemas.Live,
    ("get", "/health/ready"): schemas.Ready,
}
EVERYWHERE = {400, 431, 500, 503}
ERRORS = {
    ("post", "/predict"): {404, 408, 413, 415, 504},
    ("post", "/uncertainty"): {404, 408, 413, 415, 504},
    ("get", "/models"): set(),
    ("get", "/models/{name}"): {404},
    **{
        ("post", f"/models/{{name}}/{action}"): {403, 404, 409, 504}
        for action in ("canary", "promote", "rollback", "pin", "follow", "default")
    },
    ("get", "/health/live"): set(),
    ("get", "/health/ready"): set(),
}


@pytest.fixture(scope="module")
def description() -> Any:
    return create_app(ServiceSettings(max_samples=MAX_SAMPLES)).openapi()


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
    app = create_app(ServiceSettings())
    protocols = {
        (method.lower(), route.path)
        for route in app.routes
        if isinstance(route, NamedRoute) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    found = {(method, path) for method, path, _ in operations(description)}
    assert found == protocols | set(ANSWERS) | {("get", "/metrics"), ("get", "/")}
    assert all(operation["summary"] for _, _, operation in operations(description))


@pytest.mark.parametrize("key", ANSWERS, ids=" ".join)
def test_every_answer_and_every_error_is_described(description: Any, key: tuple[str, str]) -> None:
    method, path = key
    responses = description["paths"][path][method]["responses"]
    assert schema_of(responses.pop("200")) == ANSWERS[key].__name__
    assert set(responses) == {str(status) for status in EVERYWHERE | ERRORS[key]} | {"default"}
    assert {schema_of(response) for response in responses.values()} == {"Error"}


def test_every_reference_of_the_description_leads_somewhere(description: Any) -> None:
    references = set(re.findall(r'"\$ref":"#/([^"]+)"', orjson.dumps(description).decode()))
    assert "components/schemas/EncodedImage" in references
    for reference in references:
        place = description
        for name in reference.split("/"):
            place = place[name]
        assert place


def test_every_operation_has_a_name_of_its_own_and_its_parameters(description: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(names)) == len(names)
    for _, path, operation in operations(description):
        told = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert told == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models/{name}:predict", "/v2/models/{name}/infer"]
)
def test_the_example_of_a_body_is_answered(
    service: Application, description: Any, path: str
) -> None:
    body = description["paths"][path]["post"]["requestBody"]["content"][JSON_TYPE]["example"]
    response = service.post(path.replace("{name}", "digits"), json=body)
    assert response.status_code == 200, response.text


def test_binary_bodies_are_described_both_ways(description: Any) -> None:
    infer = description["paths"]["/v2/models/{name}/infer"]["post"]
    for content in (infer["requestBody"]["content"], infer["responses"]["200"]["content"]):
        assert set(content) == {JSON_TYPE, "application/octet-stream"}
    assert LENGTH_HEADER in {each["name"] for each in infer["parameters"]}
    assert LENGTH_HEADER in infer["responses"]["200"]["headers"]


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
    assert content[JSON_TYPE]["schema"]["$ref"] == "#/components/schemas/Instances"
    assert description["components"]["schemas"]["Instances"]["required"] == ["instances"]
    expected = {"model", "version"}
    if path == "/uncertainty":
        expected |= {"samples", "seed", "method", "design", "coverage", "sets", "max_risk"}
    assert {parameter["name"] for parameter in operation["parameters"]} == expected
    assert all(parameter["description"] for parameter in operation["parameters"])


def test_switched_off_uncertainty_is_not_described() -> None:
    with_it, without = (
        set(create_app(ServiceSettings(uncertainty=offered)).openapi()["paths"])
        for offered in (True, False)
    )
    assert with_it - without == {"/uncertainty"}
    assert without < with_it


def test_a_worker_takes_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "service.observability.logs.configure", lambda *given: configured.append(given)
    )
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
