import shutil
from pathlib import Path

import orjson

from service.api import schemas
from service.app import create_app
from service.settings import ServiceSettings
from tests.bundles import copy_bundle
from tests.service.serving import (
    Application,
    WatchedRepository,
    check_error,
    serving,
    serving_models,
    wait,
)


def test_models_summarises_the_loaded_model(service: Application, bundle_folder: Path) -> None:
    response = service.get("/models")
    answer = schemas.Models.model_validate_json(response.content)
    manifest = orjson.loads((bundle_folder / "manifest.json").read_bytes())
    (summary,) = answer.models
    assert (response.status_code, answer.default, answer.refused) == (200, "digits", [])
    assert (summary.name, summary.version) == ("digits", "1")
    assert summary.class_names == list("0123456789")
    assert (summary.input.channels, summary.input.height, summary.input.width) == (1, 8, 8)
    assert summary.parameters == manifest["parameters"]
    assert summary.precision == "fp32"
    assert summary.dropout_layers[0].p == 0.5
    assert summary.test_accuracy == manifest["metrics"]["test"]["accuracy"]


def test_model_card_has_the_manifest_and_the_markdown(
    service: Application, bundle_folder: Path
) -> None:
    response = service.get("/models/digits")
    answer = schemas.ModelCard.model_validate_json(response.content)
    assert response.status_code == 200
    assert answer.card == (bundle_folder / "report" / "card.md").read_text()
    assert response.json()["manifest"] == orjson.loads(
        (bundle_folder / "manifest.json").read_bytes()
    )
    assert service.get("/models/digits?version=1").content == response.content


def test_models_lists_several_models_by_name(bundle_folder: Path, tmp_path: Path) -> None:
    for name in ("zeta", "alpha"):
        copy_bundle(bundle_folder, tmp_path, name)
    with serving_models(tmp_path) as service:
        answer = schemas.Models.model_validate_json(service.get("/models").content)
        names = [
            service.get(f"/models/{name}").json()["manifest"]["name"] for name in ("zeta", "alpha")
        ]
    assert [each.name for each in answer.models] == ["alpha", "zeta"]
    assert answer.default is None
    assert names == ["zeta", "alpha"]


def test_models_is_empty_and_a_card_is_503_while_models_load(
    models_folder: Path, tmp_path: Path
) -> None:
    # A folder of its own, in which no service before has recorded a default model.
    shutil.copytree(models_folder / "digits", tmp_path / "digits")
    settings = ServiceSettings(models_folder=tmp_path)
    repository = WatchedRepository(settings)
    repository.released.clear()
    with serving(create_app(settings, repository)) as service:
        listed = service.get("/models")
        card = service.get("/models/digits")
        repository.released.set()
        wait(repository.loaded)
        assert [each["name"] for each in service.get("/models").json()["models"]] == ["digits"]
    assert listed.json() == {"default": None, "models": [], "refused": []}
    check_error(card, 503, "not_ready", "The models are still being loaded; try again in a second.")
