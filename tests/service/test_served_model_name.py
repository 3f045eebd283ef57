"""A models folder that is one model's, as KServe mounts it at /mnt/models, under a name given."""

import asyncio
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.check.bundle_check import check_versions
from service.settings import ServiceSettings
from tests.bundles import copy_bundle
from tests.pictures import Pixels, numbers
from tests.service.serving import Application, serving_models

NAME = "numerals"


@pytest.fixture
def one_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A folder that is a bundle, of a name and version that the folder does not tell."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "mnt" / "models"))


@pytest.fixture
def versions(bundle_folder: Path, tmp_path: Path) -> Path:
    """A folder with two versions of a model."""
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path, "digits", version)
    return tmp_path / "digits"


def infer(application: Application, name: str, digit: Pixels) -> dict[str, object]:
    tensor = {
        "name": "images",
        "shape": [1, 1, 8, 8],
        "datatype": "UINT8",
        "data": digit.flatten().tolist(),
    }
    response = application.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def test_bundle_alone_answers_both_protocols_under_the_name(
    one_bundle: Path, digit: Pixels
) -> None:
    with serving_models(one_bundle, served_model_name=NAME) as application:
        for name in (NAME, f"{NAME}-mc"):
            assert application.get(f"/v2/models/{name}/ready").status_code == 200
            assert application.get(f"/v2/models/{name}").json()["name"] == name
            answer = infer(application, name, digit)
            assert (answer["model_name"], answer["model_version"]) == (name, "1")
            path = f"/v1/models/{name}"
            assert application.get(path).json()["name"] == name
            rows = application.post(f"{path}:predict", json={"instances": [numbers(digit)]})
            assert rows.status_code == 200, rows.text
        assert application.get("/v1/models").json() == {"models": [NAME]}
        assert application.get("/v2/models/digits").status_code == 404


def test_name_changes_no_answer(one_bundle: Path, models_folder: Path, digit: Pixels) -> None:
    body = {"instances": [numbers(digit)]}
    answers = []
    for folder, name in ((one_bundle, NAME), (models_folder, None)):
        with serving_models(folder, served_model_name=name) as application:
            answers.append(application.post("/uncertainty", json=body).json())
    renamed, original = answers
    assert renamed.pop("model") == NAME
    assert original.pop("model") == "digits"
    assert renamed == original


def test_highest_version_in_the_folder_serves(versions: Path, digit: Pixels) -> None:
    with serving_models(versions, served_model_name=NAME) as application:
        assert infer(application, NAME, digit)["model_version"] == "2"
    with serving_models(versions, served_model_name=NAME, models=f"{NAME}@1") as application:
        assert infer(application, NAME, digit)["model_version"] == "1"


def test_link_to_the_bundle_is_followed(bundle_folder: Path, tmp_path: Path, digit: Pixels) -> None:
    link = tmp_path / "models"
    link.symlink_to(bundle_folder)
    with serving_models(link, served_model_name=NAME) as application:
        assert infer(application, NAME, digit)["model_version"] == "1"


def test_damaged_bundle_is_reported_with_its_reason(one_bundle: Path) -> None:
    (one_bundle / "manifest.json").write_text("{")
    with serving_models(one_bundle, served_model_name=NAME) as application:
        response = application.get("/health/ready")
    assert response.status_code == 503
    assert f"{NAME}/1/manifest.json is damaged" in response.json()["error"]


def test_folder_of_several_models_is_refused_with_what_to_do(models_folder: Path) -> None:
    with serving_models(models_folder, served_model_name=NAME) as application:
        response = application.get("/health/ready")
    assert response.status_code == 503
    assert "has to be the folder of one model" in response.json()["error"]


def test_version_folder_has_to_hold_that_version(versions: Path) -> None:
    (versions / "2").rename(versions / "3")
    with serving_models(versions, served_model_name=NAME) as application:
        assert application.get(f"/v1/models/{NAME}/versions/1").status_code == 200
        refused = application.get("/models").json()["refused"]
    assert [each["version"] for each in refused] == ["3"]


async def _findings(folder: Path) -> list[str]:
    settings = ServiceSettings(models_folder=folder, served_model_name=NAME)
    return [each.sentence for each in (await check_versions(settings)).findings]


def test_check_before_the_start_tries_the_bundle_under_the_name(one_bundle: Path) -> None:
    (sentence,) = asyncio.run(_findings(one_bundle))
    assert sentence.startswith(f"{NAME} version 1: verified")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"models": "digits"}, "there is no 'digits'"),
        ({"default_model": "digits"}, "there is no 'digits'"),
        ({"served_model_name": "a-mc"}, "cannot name a model"),
        ({"served_model_name": "../x"}, "cannot name a model"),
    ],
)
def test_settings_that_contradict_the_name_are_refused(
    settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ServiceSettings.model_validate({"served_model_name": NAME} | settings)
