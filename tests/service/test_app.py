"""Tests of `create_app`: the routes, their OpenAPI description, startup and shutdown."""

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi.routing import APIRoute
from structlog.testing import capture_logs

from service import API_VERSION
from service.api import schemas
from service.api.answer_by_another_version import answer_as_noted
from service.api.open_inference import LENGTH_HEADER
from service.api.recent_metrics_schemas import RecentMetrics
from service.app import create_app, create_worker_app
from service.codecs.body_to_images import FORM_TYPE, JSON_TYPE
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import IMAGE_TYPES
from service.settings import ServiceSettings
from service.shadow.background_comparison import ShadowComparison
from service.shadow.spare_time import SpareTime
from tests.service.bad_requests import PICTURE
from tests.service.serving import (
    MAX_SAMPLES,
    PNG,
    Application,
    BlockingPredictor,
    WatchedRepository,
    predictions,
    real_predictor,
    serving,
    serving_stub,
    wait,
)

CHANGES = (
    *("canary", "promote", "rollback", "pin", "follow", "default"),
    *("shadow", "unshadow"),
)
RESPONSE_SCHEMAS = {
    ("post", "/predict"): schemas.Predictions,
    ("post", "/uncertainty"): schemas.UncertainPredictions,
    ("post", "/occlusion"): schemas.OcclusionMap,
    ("get", "/models"): schemas.Models,
    ("get", "/models/{name}"): schemas.ModelCard,
    **{("post", f"/models/{{name}}/{action}"): schemas.ModelSummary for action in CHANGES},
    ("get", "/models/{name}/examples"): schemas.Examples,
    ("get", "/models/{name}/drift"): schemas.Drift,
    ("post", "/models/{name}/drift/reset"): schemas.DriftReset,
    ("get", "/metrics/recent"): RecentMetrics,
    ("get", "/health/live"): schemas.Live,
    ("get", "/health/ready"): schemas.Ready,
}
FILES = {
    ("get", "/metrics"),
    ("get", "/models/{name}/examples/{number}"),
    ("get", "/models/{name}/report"),
    ("get", "/"),
    ("get", "/ui/models"),
    ("get", "/ui/monitor"),
}
"""Routes whose responses are no JSON."""
COMMON_ERRORS = {400, 431, 500, 503}
ERRORS = {
    ("post", "/predict"): {404, 408, 413, 415, 504},
    ("post", "/uncertainty"): {404, 408, 413, 415, 504},
    ("post", "/occlusion"): {404, 408, 413, 415, 504},
    ("get", "/models"): set(),
    ("get", "/models/{name}"): {404},
    **{("post", f"/models/{{name}}/{action}"): {403, 404, 409, 504} for action in CHANGES},
    ("get", "/models/{name}/examples"): {404},
    ("get", "/models/{name}/drift"): {404, 504},
    ("post", "/models/{name}/drift/reset"): {403, 404, 504},
    ("get", "/metrics/recent"): set(),
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


def parameters_of(description: Any, operation: Any) -> list[Any]:
    """Return an operation's parameters, those among the components included."""
    components = description["components"]["parameters"]
    return [
        components[each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        for each in operation.get("parameters", ())
    ]


def schema_of(content: Any) -> str:
    return str(content["content"][JSON_TYPE]["schema"]["$ref"].rpartition("/")[2])


def test_openapi_json_is_served(service: Application, description: Any) -> None:
    served = service.get("/openapi.json").json()
    parameters = served["components"].pop("parameters")
    assert parameters["ModelName"].pop("example") == "digits"
    assert parameters["ProtocolModelName"].pop("example") == "digits"
    assert parameters == description["components"]["parameters"]
    assert {**served, "components": {**served["components"], "parameters": parameters}} == (
        description
    )
    assert (description["info"]["title"], description["info"]["version"]) == (
        "Dropserve",
        API_VERSION,
    )


def test_openapi_describes_every_route(description: Any) -> None:
    app = create_app(ServiceSettings())
    protocols = {
        (method.lower(), route.path)
        for route in app.routes
        if isinstance(route, APIRoute) and route.path.startswith(("/v1", "/v2"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    found = {(method, path) for method, path, _ in operations(description)}
    assert found == protocols | set(RESPONSE_SCHEMAS) | FILES
    assert all(operation["summary"] for _, _, operation in operations(description))


@pytest.mark.parametrize("key", RESPONSE_SCHEMAS, ids=" ".join)
def test_openapi_describes_every_response_and_error(description: Any, key: tuple[str, str]) -> None:
    method, path = key
    responses = description["paths"][path][method]["responses"]
    assert schema_of(responses.pop("200")) == RESPONSE_SCHEMAS[key].__name__
    assert set(responses) == {str(status) for status in COMMON_ERRORS | ERRORS[key]} | {"default"}
    assert {schema_of(response) for response in responses.values()} == {"Error"}


def test_openapi_describes_what_a_bundle_carries(description: Any) -> None:
    paths = description["paths"]
    image = paths["/models/{name}/examples/{number}"]["get"]
    report = paths["/models/{name}/report"]["get"]
    (number,) = (each for each in image["parameters"] if each.get("name") == "number")
    assert (number["schema"]["type"], number["example"]) == ("integer", 0)
    assert set(image["responses"]["200"]["content"]) == {"image/webp"}
    assert set(report["responses"]["200"]["content"]) == {"text/html"}
    for operation in (image, report):
        assert schema_of(operation["responses"]["404"]) == "Error"


def test_openapi_references_resolve(description: Any) -> None:
    references = set(re.findall(r'"\$ref":"#/([^"]+)"', orjson.dumps(description).decode()))
    assert "components/schemas/EncodedImage" in references
    for reference in references:
        place = description
        for name in reference.split("/"):
            place = place[name]
        assert place


def test_openapi_operations_have_unique_ids_and_their_path_parameters(description: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(names)) == len(names)
    for _, path, operation in operations(description):
        names_in_path = {
            each["name"] for each in parameters_of(description, operation) if each["in"] == "path"
        }
        assert names_in_path == set(re.findall(r"{(\w+)}", path))


def test_openapi_describes_binary_request_and_response_bodies(description: Any) -> None:
    infer = description["paths"]["/v2/models/{name}/infer"]["post"]
    for content in (infer["requestBody"]["content"], infer["responses"]["200"]["content"]):
        assert set(content) == {JSON_TYPE, "application/octet-stream"}
    assert LENGTH_HEADER in {each["name"] for each in parameters_of(description, infer)}
    assert LENGTH_HEADER in infer["responses"]["200"]["headers"]


def test_openapi_error_schema_is_strict(description: Any) -> None:
    shapes = description["components"]["schemas"]
    assert shapes["Error"]["required"] == ["error", "code"]
    assert shapes["Error"]["additionalProperties"] is False
    assert not {name for name in shapes if "ValidationError" in name}


@pytest.mark.parametrize("path", ["/predict", "/uncertainty", "/occlusion"])
def test_openapi_describes_content_types_and_query_parameters(description: Any, path: str) -> None:
    operation = description["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert operation["requestBody"]["required"]
    assert set(content) == {JSON_TYPE, FORM_TYPE, *IMAGE_TYPES}
    body = "OneInstance" if path == "/occlusion" else "Instances"
    assert content[JSON_TYPE]["schema"]["$ref"] == f"#/components/schemas/{body}"
    assert description["components"]["schemas"][body]["required"] == ["instances"]
    expected = {"model", "version"}
    if path == "/uncertainty":
        expected |= {"samples", "seed", "method", "design", "coverage", "sets"}
        expected |= {"max_risk", "max_false_alarm", "per_sample"}
    if path == "/occlusion":
        expected |= {"label", "grid", "patch"}
    assert {parameter["name"] for parameter in operation["parameters"]} == expected
    assert all(parameter["description"] for parameter in operation["parameters"])


def test_openapi_omits_uncertainty_when_it_is_disabled() -> None:
    with_it, without = (
        set(create_app(ServiceSettings(uncertainty=offered)).openapi()["paths"])
        for offered in (True, False)
    )
    assert with_it - without == {"/uncertainty"}
    assert without < with_it


def test_create_worker_app_reads_settings_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "service.observability.log_format.configure",
        lambda *arguments: configured.append(arguments),
    )
    monkeypatch.setenv("DROPSERVE_UNCERTAINTY", "false")
    monkeypatch.setenv("DROPSERVE_LOG_FORMAT", "json")
    app = create_worker_app()
    assert "/uncertainty" not in app.openapi()["paths"]
    assert configured == [("info", "json")]


def test_create_app_loads_nothing_before_its_lifespan_starts(tmp_path: Path) -> None:
    settings = ServiceSettings(models_folder=tmp_path)
    repository = WatchedRepository(settings)
    app = create_app(settings, repository)
    assert not repository.loaded.is_set()
    with serving(app):
        wait(repository.loaded)


def test_app_shutdown_ends_inference_threads(models_folder: Path) -> None:
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


class OwnShadows(ShadowComparison):
    """A comparison of shadows whose work is a function's."""

    def __init__(self, repository: Repository, work: Callable[[], Awaitable[None]]) -> None:
        super().__init__(repository, answer_as_noted, SpareTime(1.0))
        self._work = work

    async def run(self) -> None:
        await self._work()


def test_background_task_that_fails_is_logged_at_once(tmp_path: Path) -> None:
    settings = ServiceSettings(models_folder=tmp_path)
    repository = WatchedRepository(settings)

    async def fail() -> None:
        raise RuntimeError("no room")

    shadows = OwnShadows(repository, fail)
    with capture_logs() as log, serving(create_app(settings, repository, shadows=shadows)):
        wait(repository.loaded)
        (line,) = [line for line in log if line["event"] == "background task failed"]
        assert (line["log_level"], line["task"]) == ("error", "shadows")
        assert str(line["exc_info"]) == "no room"


def test_app_shutdown_waits_until_background_tasks_have_ended(tmp_path: Path) -> None:
    settings = ServiceSettings(models_folder=tmp_path)
    repository = WatchedRepository(settings)
    has_begun, has_ended = threading.Event(), threading.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(has_ended.set)

    shadows = OwnShadows(repository, work)
    with serving(create_app(settings, repository, shadows=shadows)):
        wait(has_begun)
    assert has_ended.is_set()


def test_app_shutdown_answers_queued_requests(models_folder: Path) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, blocking) as service:
        running = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        blocking.wait_until_running()
        waiting = service.submit("POST", "/predict", content=PICTURE, headers=PNG)
        while service.metric("dropserve_queue_rows", model="digits") == 0:
            pass  # its image is being decoded
        blocking.released.set()
    assert predictions(running.result()) == predictions(waiting.result())


def test_description_is_completed_once_though_two_threads_ask_for_it() -> None:
    app = create_app(ServiceSettings())
    complete, completed = app.complete, list[int]()

    def slowly(description: dict[str, Any]) -> dict[str, Any]:
        completed.append(1)
        time.sleep(0.05)
        return complete(description)

    app.complete = slowly
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: app.openapi(), range(2))
    assert first == second
    assert len(completed) == 1
