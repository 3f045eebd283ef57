from pathlib import Path

from service.api import schemas
from service.app import create_app
from service.settings import ServiceSettings
from tests.pictures import Pixels, encode
from tests.service.serving import (
    PNG,
    Application,
    WatchedRepository,
    check_error,
    predictions,
    serving,
    serving_models,
    wait,
)

LOADING = "The models are still being loaded; try again in a second."


def test_ready_is_200_only_after_the_models_are_loaded(models_folder: Path, digit: Pixels) -> None:
    settings = ServiceSettings(models_folder=models_folder)
    repository = WatchedRepository(settings)
    repository.released.clear()
    with serving(create_app(settings, repository)) as service:
        before = [
            service.get("/health/ready"),
            service.post("/predict", encode(digit), headers=PNG),
        ]
        live = service.get("/health/live")
        repository.released.set()
        wait(repository.loaded)
        after = service.get("/health/ready")
        assert predictions(service.post("/predict", encode(digit), headers=PNG))
    for response in before:
        check_error(response, 503, "not_ready", LOADING)
    assert schemas.Live.model_validate_json(live.content).live
    assert (live.status_code, after.status_code) == (200, 200)
    assert schemas.Ready.model_validate_json(after.content).ready


def test_ready_is_503_with_instructions_if_there_is_no_bundle(
    tmp_path: Path, digit: Pixels
) -> None:
    with serving_models(tmp_path / "none") as service:
        responses = [
            service.get("/health/ready"),
            service.post("/predict", encode(digit), headers=PNG),
        ]
        assert service.get("/health/live").status_code == 200
    for response in responses:
        sentence = "The models folder holds no bundle; train one with python -m training."
        check_error(response, 503, "not_ready", sentence)


def test_metrics_returns_prometheus_text(service: Application) -> None:
    response = service.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert "# TYPE dropserve_requests_total counter" in response.text
