"""Sets, typicality and abstention, as they go over the wire."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bundle.store import MANIFEST_FILE, open_bundle
from model.uncertainty.calibration import CALIBRATION_FILE
from service.api import schemas
from tests.bundles import copy_bundle, edit_manifest
from tests.pictures import Pixels, encode, instances
from tests.service.serving import JSON, PNG, Application, predictions, serving_models
from training.data.dataset import Split


@pytest.fixture(scope="module")
def everything(models_folder: Path) -> Iterator[Application]:
    """The service, taking all digits at once."""
    with serving_models(models_folder, max_images=1000) as application:
        yield application


@pytest.fixture(scope="module")
def uncalibrated(
    tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path
) -> Iterator[Application]:
    models = tmp_path_factory.mktemp("uncalibrated")
    place = copy_bundle(bundle_folder, models)
    files = open_bundle(bundle_folder).manifest.files
    kept = {name: digest for name, digest in files.items() if name != CALIBRATION_FILE}
    edit_manifest(place, calibration=None, files=kept)
    (place / CALIBRATION_FILE).unlink()
    with serving_models(models) as application:
        yield application


def ask(service: Application, pixels: Pixels, query: str = "") -> schemas.UncertainPredictions:
    body = instances([encode(image) for image in pixels])
    response = service.post(f"/uncertainty?{query}", body, headers=JSON)
    assert response.status_code == 200, response.text
    return schemas.UncertainPredictions.model_validate_json(response.content)


def sets(answer: schemas.UncertainPredictions) -> list[list[str]]:
    return [each.prediction_set or [] for each in answer.predictions]


def test_a_calibrated_answer_says_what_it_keeps_to(
    everything: Application, digits: Pixels, bundle_folder: Path
) -> None:
    answer = ask(everything, digits[:8])
    calibration = open_bundle(bundle_folder).manifest.calibration
    assert calibration is not None
    assert (answer.calibration, answer.coverage) == ("fitted", 0.9)
    assert answer.max_risk == calibration.max_risk
    for each in answer.predictions:
        assert each.typicality is not None
        assert each.abstain in (True, False)


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_sets_cover_what_was_asked_for_and_grow_with_it(
    everything: Application, held_out: Split, kind: str
) -> None:
    truth = held_out.labels.astype(str).tolist()
    size = 0.0
    for coverage in (0.5, 0.9, 0.99):
        found = sets(ask(everything, held_out.images[:, 0], f"coverage={coverage}&sets={kind}"))
        covered = np.mean([label in each for label, each in zip(truth, found, strict=True)])
        # Validation and test have 180 images each: the share that is covered errs by both.
        deviation = math.sqrt(2 * coverage * (1 - coverage) / len(truth))
        assert covered >= coverage - 4 * deviation
        larger = float(np.mean([len(each) for each in found]))
        assert larger >= size
        size = larger


def test_the_likeliest_class_of_a_set_comes_first(everything: Application, digits: Pixels) -> None:
    for coverage in (0.99, 0.9999):  # of the latter every class, however sure the model is
        answer = ask(everything, digits[:40], f"coverage={coverage}")
        for each in answer.predictions:
            listed = [each.probabilities[name] for name in each.prediction_set or []]
            assert listed == sorted(listed, reverse=True)
            assert not listed or (each.prediction_set or [])[0] == each.label
    assert all(len(each) > 1 for each in sets(answer))


def test_a_coverage_beyond_the_validation_images_takes_every_class(
    everything: Application, digit: Pixels
) -> None:
    (found,) = sets(ask(everything, digit[None], "coverage=0.9999"))
    assert sorted(found) == list("0123456789")


def test_a_smaller_risk_abstains_more(everything: Application, digits: Pixels) -> None:
    abstained = [
        {row for row, each in enumerate(answer.predictions) if each.abstain}
        for answer in (ask(everything, digits, f"max_risk={risk}") for risk in (0.5, 0.05, 0.0001))
    ]
    assert abstained[0] <= abstained[1] <= abstained[2]
    assert len(abstained[0]) < len(digits)
    assert abstained[2] == set(range(len(digits))), "180 images cannot show so small a risk"


def test_noise_is_less_typical_than_digits(everything: Application, digits: Pixels) -> None:
    noise = np.random.default_rng(0).integers(0, 256, digits.shape, np.uint8)
    known, strange = (
        np.mean([each.typicality or 0.0 for each in ask(everything, pixels).predictions])
        for pixels in (digits, noise)
    )
    assert known > 0.3
    assert strange < known / 2


def test_decisions_change_nothing_else(everything: Application, digit: Pixels) -> None:
    answers: list[Any] = []
    for query in ("", "?coverage=0.5&sets=aps&max_risk=0.3"):
        (each,) = predictions(everything.post(f"/uncertainty{query}", encode(digit), headers=PNG))
        answers.append({name: value for name, value in each.items() if name not in _DECIDED})
    assert answers[0] == answers[1]


_DECIDED = {"prediction_set", "abstain"}


def test_an_uncalibrated_bundle_says_so(
    uncalibrated: Application, everything: Application, digits: Pixels
) -> None:
    answer = ask(uncalibrated, digits[:8])
    assert (answer.calibration, answer.coverage, answer.max_risk) == ("uncalibrated", None, None)
    for each in answer.predictions:
        assert (each.prediction_set, each.typicality, each.abstain) == (None, None, None)
    fitted = ask(everything, digits[:8])
    assert fitted.predictions[0].probabilities != answer.predictions[0].probabilities
    assert uncalibrated.metric("dropserve_abstentions_total", model="digits") == 0


def test_an_operator_sees_them(models_folder: Path, digits: Pixels) -> None:
    with serving_models(models_folder) as service:
        answer = ask(service, digits[:50], "max_risk=0.05")
        abstained = sum(bool(each.abstain) for each in answer.predictions)
        names = ("dropserve_typicality_count", "dropserve_prediction_set_classes_count")
        assert [service.metric(name, model="digits") for name in names] == [50, 50]
        classes = service.metric("dropserve_prediction_set_classes_sum", model="digits")
        assert classes == sum(map(len, sets(answer)))
        assert service.metric("dropserve_abstentions_total", model="digits") == abstained


def test_a_bundle_whose_calibration_is_lost_is_refused(
    tmp_path: Path, bundle_folder: Path, digit: Pixels
) -> None:
    place = copy_bundle(bundle_folder, tmp_path)
    (place / CALIBRATION_FILE).unlink()
    assert (place / MANIFEST_FILE).is_file()
    with serving_models(tmp_path) as service:
        response = service.post("/uncertainty", encode(digit), headers=PNG)
    assert response.status_code == 503
    assert CALIBRATION_FILE in response.json()["error"]
