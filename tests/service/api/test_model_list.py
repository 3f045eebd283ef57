import json
import shutil
from pathlib import Path

import orjson
import pytest

from service.api import schemas
from service.api.model_list import without_folders
from service.app import create_app
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest
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


def test_clients_see_no_folder_of_the_machine_that_trained_the_model(
    tmp_path: Path, bundle_folder: Path
) -> None:
    options = orjson.loads((bundle_folder / "manifest.json").read_bytes())["training"]
    private = {"data": "folder:/home/ada/my:pets/", "backbone": "/home/ada/own.onnx"}
    edit_manifest(copy_bundle(bundle_folder, tmp_path), training=options | private)
    with serving_models(tmp_path) as application:
        response = application.get("/models/digits")
    shown = schemas.ModelCard.model_validate_json(response.content).manifest.training
    named = {"data": "folder:my:pets", "backbone": "own.onnx"}
    assert shown == options | named
    assert without_folders({"data": "folder:pets", "learn": None}) == {
        "data": "folder:pets",
        "learn": None,
    }


def test_models_has_the_figures_of_each_version(service: Application, bundle_folder: Path) -> None:
    answer = schemas.Models.model_validate_json(service.get("/models").content)
    (version,) = answer.models[0].versions
    manifest = orjson.loads((bundle_folder / "manifest.json").read_bytes())
    test, layers = manifest["metrics"]["test"], manifest["metrics"]["diagnosis"]["layers"]
    assert (version.version, version.role, version.share) == ("1", "stable", 1)
    assert (version.test.nll, version.test.ece) == (test["nll"], test["ece"])
    assert version.test.aurc == test["trust"]["aurc"]
    assert version.test.answered == test["trust"]["selection"]["answered"]
    assert version.hidden_units == sum(layer["units"] for layer in layers)
    assert version.dead_units == sum(layer["dead"] for layer in layers)
    assert (version.preset, version.classes, version.examples) == ("cnn", 10, 8)
    assert version.published is not None
    assert version.published.isoformat().startswith(manifest["published"][:19])
    assert version.has_report


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"test": None, "diagnosis": None},
        {"test": "good", "diagnosis": {"layers": "many"}},
        {"test": {"accuracy": "1", "nll": True, "ece": 10**400, "trust": {"selection": None}}},
        {"diagnosis": {"layers": [{"units": 3}, 7, {"dead": [1]}]}},
    ],
)
def test_metrics_that_are_missing_or_no_numbers_are_null(
    bundle_folder: Path, tmp_path: Path, metrics: dict[str, object]
) -> None:
    copy = copy_bundle(bundle_folder, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_bytes())
    del manifest["published"]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"metrics": metrics}))
    with serving_models(tmp_path) as service:
        answer = schemas.Models.model_validate_json(service.get("/models").content)
    (version,) = answer.models[0].versions
    assert set(version.test.model_dump().values()) == {None}
    assert (version.dead_units, version.published) == (None, None)


def test_models_has_the_canary_with_its_share(bundle_folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        copy_bundle(bundle_folder, tmp_path, version=number)
    with serving_models(tmp_path) as service:
        service.post("/models/digits/pin?version=1")
        service.post("/models/digits/canary?version=2&share=0.25")
        answer = schemas.Models.model_validate_json(service.get("/models").content)
        service.post("/v2/repository/models/digits/unload")
        unloaded = service.get("/models").json()["unloaded"]
    shares = [(each.version, each.role, each.share) for each in answer.models[0].versions]
    assert shares == [("1", "stable", 0.75), ("2", "canary", 0.25)]
    assert unloaded == ["digits"]


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
    assert listed.json() == {"default": None, "models": [], "refused": [], "unloaded": []}
    check_error(card, 503, "not_ready", "The models are still being loaded; try again in a second.")
