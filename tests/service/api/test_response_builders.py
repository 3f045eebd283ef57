"""Prediction sets, typicality and abstention in the responses of POST /uncertainty."""

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
def calibrated(models_folder: Path) -> Iterator[Application]:
    """The service with a calibrated model and room for all digits in one request."""
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


def post_images(
    service: Application, pixels: Pixels, query: str = ""
) -> schemas.UncertainPredictions:
    body = instances([encode(image) for image in pixels])
    response = service.post(f"/uncertainty?{query}", body, headers=JSON)
    assert response.status_code == 200, response.text
    return schemas.UncertainPredictions.model_validate_json(response.content)


def sets(answer: schemas.UncertainPredictions) -> list[list[str]]:
    return [each.prediction_set or [] for each in answer.predictions]


def test_uncertainty_reports_coverage_and_max_risk_of_a_calibrated_model(
    calibrated: Application, digits: Pixels, bundle_folder: Path
) -> None:
    answer = post_images(calibrated, digits[:8])
    calibration = open_bundle(bundle_folder).manifest.calibration
    assert calibration is not None
    assert (answer.calibration, answer.coverage) == ("fitted", 0.9)
    assert answer.max_risk == calibration.max_risk
    for each in answer.predictions:
        assert each.typicality is not None
        assert each.abstain in (True, False)


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_prediction_sets_reach_the_requested_coverage_and_grow_with_it(
    calibrated: Application, held_out: Split, kind: str
) -> None:
    truth = held_out.labels.astype(str).tolist()
    size = 0.0
    for coverage in (0.5, 0.9, 0.99):
        prediction_sets = sets(
            post_images(calibrated, held_out.images[:, 0], f"coverage={coverage}&sets={kind}")
        )
        covered = np.mean(
            [label in each for label, each in zip(truth, prediction_sets, strict=True)]
        )
        # Validation and test have 180 images each, and both add to the variance of the coverage.
        deviation = math.sqrt(2 * coverage * (1 - coverage) / len(truth))
        assert covered >= coverage - 4 * deviation
        larger = float(np.mean([len(each) for each in prediction_sets]))
        assert larger >= size
        size = larger


def test_prediction_set_lists_the_most_probable_class_first(
    calibrated: Application, digits: Pixels
) -> None:
    for coverage in (
        0.99,
        0.9999,
    ):  # 0.9999 puts every class into the set, however certain the model is
        answer = post_images(calibrated, digits[:40], f"coverage={coverage}")
        for each in answer.predictions:
            listed = [each.probabilities[name] for name in each.prediction_set or []]
            assert listed == sorted(listed, reverse=True)
            assert not listed or (each.prediction_set or [])[0] == each.label
    assert all(len(each) > 1 for each in sets(answer))


def test_prediction_set_holds_every_class_if_the_coverage_exceeds_the_validation_images(
    calibrated: Application, digit: Pixels
) -> None:
    (prediction_sets,) = sets(post_images(calibrated, digit[None], "coverage=0.9999"))
    assert sorted(prediction_sets) == list("0123456789")


def test_abstention_grows_as_max_risk_falls(calibrated: Application, digits: Pixels) -> None:
    abstained = [
        {row for row, each in enumerate(answer.predictions) if each.abstain}
        for answer in (
            post_images(calibrated, digits, f"max_risk={risk}") for risk in (0.5, 0.05, 0.0001)
        )
    ]
    assert abstained[0] <= abstained[1] <= abstained[2]
    assert len(abstained[0]) < len(digits)
    assert abstained[2] == set(range(len(digits))), "180 images cannot verify so small a risk"


def test_typicality_of_noise_is_below_that_of_digits(
    calibrated: Application, digits: Pixels
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, digits.shape, np.uint8)
    of_digits, of_noise = (
        np.mean([each.typicality or 0.0 for each in post_images(calibrated, pixels).predictions])
        for pixels in (digits, noise)
    )
    assert of_digits > 0.3
    assert of_noise < of_digits / 2


def test_coverage_and_max_risk_change_no_other_field(
    calibrated: Application, digit: Pixels
) -> None:
    answers: list[Any] = []
    for query in ("", "?coverage=0.5&sets=aps&max_risk=0.3"):
        (each,) = predictions(calibrated.post(f"/uncertainty{query}", encode(digit), headers=PNG))
        answers.append({name: value for name, value in each.items() if name not in DECISION_FIELDS})
    assert answers[0] == answers[1]


DECISION_FIELDS = {"prediction_set", "abstain"}


def test_uncertainty_of_an_uncalibrated_bundle_has_null_decisions(
    uncalibrated: Application, calibrated: Application, digits: Pixels
) -> None:
    answer = post_images(uncalibrated, digits[:8])
    assert (answer.calibration, answer.coverage, answer.max_risk) == ("uncalibrated", None, None)
    for each in answer.predictions:
        assert (each.prediction_set, each.typicality, each.abstain) == (None, None, None)
    fitted = post_images(calibrated, digits[:8])
    assert fitted.predictions[0].probabilities != answer.predictions[0].probabilities
    assert uncalibrated.metric("dropserve_abstentions_total", model="digits") == 0


def test_metrics_count_typicality_prediction_sets_and_abstentions(
    models_folder: Path, digits: Pixels
) -> None:
    with serving_models(models_folder) as service:
        answer = post_images(service, digits[:50], "max_risk=0.05")
        abstained = sum(bool(each.abstain) for each in answer.predictions)
        names = ("dropserve_typicality_count", "dropserve_prediction_set_classes_count")
        assert [service.metric(name, model="digits") for name in names] == [50, 50]
        classes = service.metric("dropserve_prediction_set_classes_sum", model="digits")
        assert classes == sum(map(len, sets(answer)))
        assert service.metric("dropserve_abstentions_total", model="digits") == abstained


def test_bundle_without_its_calibration_file_is_refused(
    tmp_path: Path, bundle_folder: Path, digit: Pixels
) -> None:
    place = copy_bundle(bundle_folder, tmp_path)
    (place / CALIBRATION_FILE).unlink()
    assert (place / MANIFEST_FILE).is_file()
    with serving_models(tmp_path) as service:
        response = service.post("/uncertainty", encode(digit), headers=PNG)
    assert response.status_code == 503
    assert CALIBRATION_FILE in response.json()["error"]
