"""GET /models/{name}/drift and its reset, over a real bundle."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import orjson
import pytest

from model.bundle.store import open_bundle
from model.uncertainty.calibration import CALIBRATION_FILE
from service.api import schemas
from tests.bundles import copy_bundle, edit_manifest
from tests.pictures import Pixels, encode, instances
from tests.service.process import ServiceProcess, service_process
from tests.service.serving import (
    JSON,
    TIMEOUT_SECONDS,
    Application,
    check_error,
    predictions,
    serving_models,
)

DRIFT = "/models/digits/drift"


@pytest.fixture
def application(models_folder: Path) -> Iterator[Application]:
    with serving_models(models_folder) as application:
        yield application


@pytest.fixture(scope="module")
def noise() -> Pixels:
    """Images of random pixels, uint8 [N, 8, 8], which no validation image is like."""
    return np.random.default_rng(0).integers(0, 256, size=(40, 8, 8), dtype=np.uint8)


def drift(service: Application, query: str = "") -> schemas.Drift:
    response = service.get(DRIFT + query)
    assert response.status_code == 200, response.text
    return schemas.Drift.model_validate_json(response.content)


def post(service: Application, images: Pixels, query: str = "") -> None:
    body = instances([encode(image) for image in images])
    assert predictions(service.post(f"/uncertainty{query}", body, headers=JSON))


def figures(answer: schemas.Drift) -> tuple[schemas.DriftFigure, schemas.DriftFigure]:
    assert answer.typicality is not None
    assert answer.confidence is not None
    return answer.typicality, answer.confidence


def alarm(service: Application, figure: str) -> float:
    labels = {"model": "digits", "version": "1", "figure": figure}
    return service.metric("dropserve_drift_alarm", **labels)


def test_service_without_requests_has_no_alarm_and_nothing_tested(
    application: Application,
) -> None:
    answer = drift(application)
    assert (answer.model, answer.version, answer.calibration) == ("digits", "1", "fitted")
    assert (answer.level, answer.alarm) == (0.01, False)
    for figure in figures(answer):
        assert (figure.images, figure.log_wealth, figure.p_value) == (0, 0, 1)
        assert (figure.raised, figure.since) == (None, None)
        assert [tail.share for tail in figure.tails] == [None, None]
    assert alarm(application, "typicality") == 0


def test_noise_raises_the_alarm_and_a_reset_ends_it(
    application: Application, noise: Pixels, digits: Pixels
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    post(application, noise[:20])
    answer = drift(application)
    typicality, _ = figures(answer)
    assert (answer.alarm, typicality.alarm, typicality.images) == (True, True, 20)
    assert typicality.p_value <= 0.01 / 2
    assert typicality.raised is not None
    assert typicality.since is not None
    assert 1 <= typicality.since.image <= typicality.raised.image <= 20
    assert before <= typicality.since.time <= typicality.raised.time <= datetime.now(UTC)
    assert (typicality.tails[0].p_value, typicality.tails[1].p_value) == (0.01, 0.05)
    assert (typicality.tails[0].share or 0) > typicality.tails[0].expected
    assert alarm(application, "typicality") == 1
    post(application, digits[:20])
    assert drift(application).alarm, "it stays until it is reset"

    refused = application.public().post(f"{DRIFT}/reset")
    check_error(refused, 403, "control_disabled", "Models can be changed by the control listener…")
    assert drift(application).alarm
    response = application.post(f"{DRIFT}/reset")
    answer_of_reset = schemas.DriftReset.model_validate_json(response.content)
    assert answer_of_reset == schemas.DriftReset(model="digits", versions=["1"])
    answer = drift(application)
    assert not answer.alarm
    assert [figure.images for figure in figures(answer)] == [0, 0]
    assert alarm(application, "typicality") == 0


def test_validation_like_images_raise_no_alarm(application: Application, digits: Pixels) -> None:
    for start in range(0, len(digits), 60):
        post(application, digits[start : start + 60])
    answer = drift(application)
    assert not answer.alarm
    assert [figure.images for figure in figures(answer)] == [len(digits)] * 2


def test_both_figures_are_tested_where_the_request_allows_it(
    application: Application, digits: Pixels
) -> None:
    post(application, digits[:3], "?samples=8")
    typicality, confidence = figures(drift(application))
    assert (typicality.images, confidence.images) == (3, 0)
    post(application, digits[:2])
    typicality, confidence = figures(drift(application))
    assert (typicality.images, confidence.images) == (5, 2)


def test_open_inference_protocol_with_dropout_active_is_tested_too(
    application: Application, digits: Pixels
) -> None:
    data = (digits[:3] / 255).ravel().tolist()
    tensor = {"name": "images", "shape": [3, 1, 8, 8], "datatype": "FP32", "data": data}
    for name in ("digits", "digits-mc"):
        body = orjson.dumps({"inputs": [tensor]})
        response = application.post(f"/v2/models/{name}/infer", body, headers=JSON)
        assert response.status_code == 200, response.text
    _, confidence = figures(drift(application))
    assert confidence.images == 3
    body = orjson.dumps({"inputs": [tensor], "parameters": {"samples": "auto"}})
    assert application.post("/v2/models/digits-mc/infer", body).status_code == 200
    typicality, confidence = figures(drift(application))
    assert confidence.images == 3
    assert typicality.images >= 3


def test_each_version_has_a_test_of_its_own(
    bundle_folder: Path, tmp_path: Path, noise: Pixels
) -> None:
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path, version=version)
    with serving_models(tmp_path) as service:
        pin = service.post("/models/digits/canary?version=1&share=0.5")
        assert pin.status_code == 200, pin.text
        post(service, noise[:20], "?version=1")
        assert drift(service, "?version=1").alarm
        assert not drift(service, "?version=2").alarm
        response = service.post(f"{DRIFT}/reset")
        assert response.json() == {"model": "digits", "versions": ["2", "1"]}
        assert not drift(service, "?version=1").alarm


def test_level_is_a_setting_of_the_service(models_folder: Path) -> None:
    with serving_models(models_folder, drift_level=0.2) as service:
        assert drift(service).level == 0.2


def test_uncalibrated_model_has_nulls(bundle_folder: Path, tmp_path: Path, digits: Pixels) -> None:
    place = copy_bundle(bundle_folder, tmp_path)
    files = open_bundle(bundle_folder).manifest.files
    kept = {name: digest for name, digest in files.items() if name != CALIBRATION_FILE}
    edit_manifest(place, calibration=None, files=kept)
    (place / CALIBRATION_FILE).unlink()
    with serving_models(tmp_path) as service:
        post(service, digits[:2])
        answer = drift(service)
        assert answer.calibration == "uncalibrated"
        assert (answer.level, answer.alarm) == (None, None)
        assert (answer.typicality, answer.confidence) == (None, None)
        reset = service.post(f"{DRIFT}/reset")
        assert reset.json() == {"model": "digits", "versions": ["1"]}


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "sentence"),
    [
        ("GET", "/models/cats/drift", 404, "unknown_model", "No model 'cats' is loaded; there is…"),
        ("GET", f"{DRIFT}?version=9", 404, "unknown_version", "…"),
        ("GET", f"{DRIFT}?figure=1", 400, "invalid_query", "…"),
        ("POST", "/models/cats/drift/reset", 404, "unknown_model", "No model 'cats' is loaded;…"),
        ("POST", f"{DRIFT}/reset?version=1", 400, "invalid_query", "…"),
    ],
)
def test_drift_routes_refuse_what_they_do_not_know(
    service: Application, method: str, path: str, status: int, code: str, sentence: str
) -> None:
    check_error(service.request(method, path), status, code, sentence)


def wait_for_images(service: ServiceProcess, worker: int, count: int) -> schemas.Drift:
    """Ask one worker until it knows of so many images: the others tell it a little later."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        with service.only(worker), service.client() as client:
            response = client.get(DRIFT)
        if response.status_code == 200:
            answer = schemas.Drift.model_validate_json(response.content)
            if figures(answer)[0].images == count:
                return answer
        assert time.monotonic() < deadline, response.text


def test_workers_share_one_test_and_one_picture(models_folder: Path, noise: Pixels) -> None:
    with service_process(models_folder, workers=2) as service:
        workers = service.workers()
        for index in range(10):
            with service.only(workers[index % 2]):
                answer = service.post("/uncertainty", encode(noise[index]), "image/png")
                assert answer.status_code == 200
        one, other = (wait_for_images(service, worker, 10) for worker in workers)
        assert one.alarm
        assert one == other
        with service.control() as control:
            response = control.post(f"{DRIFT}/reset")
            assert response.status_code == 200, response.text
        for worker in workers:
            assert not wait_for_images(service, worker, 0).alarm
