"""Prediction sets, typicality and abstention in the responses of POST /uncertainty."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from model.bundle.store import MANIFEST_FILE, open_bundle
from model.inference.predictor_loading import read_calibrator
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


def test_uncertainty_reports_coverage_and_limits_of_a_calibrated_model(
    calibrated: Application, digits: Pixels, bundle_folder: Path
) -> None:
    answer = post_images(calibrated, digits[:8])
    calibration = open_bundle(bundle_folder).manifest.calibration
    assert calibration is not None
    assert (answer.calibration, answer.coverage) == ("fitted", 0.9)
    assert (answer.max_risk, answer.max_false_alarm) == (calibration.max_risk, 0.01)
    for each in answer.predictions:
        assert each.typicality is not None
        assert 1 / (calibration.images + 1) <= each.typicality <= 1
        assert each.abstain in (True, False)


@pytest.mark.parametrize("kind", ["thr", "class-conditional", "aps"])
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
            assert each.prediction_set, "a set is never empty"
            listed = [each.probabilities[name] for name in each.prediction_set]
            assert listed == sorted(listed, reverse=True)
            assert each.prediction_set[0] == each.label
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


def test_unusual_images_grow_with_max_false_alarm(calibrated: Application, digits: Pixels) -> None:
    unusual = []
    for rate in (0.001, 0.01, 0.2, 0.999):
        answer = post_images(calibrated, digits, f"max_risk=0.5&max_false_alarm={rate}")
        assert answer.max_false_alarm == rate
        reasons = [each.abstain_because for each in answer.predictions]
        rows = {row for row, reason in enumerate(reasons) if reason in ("unusual", "both")}
        typicality = [each.typicality or 0.0 for each in answer.predictions]
        assert rows == {row for row, value in enumerate(typicality) if value <= rate}
        unusual.append(rows)
    assert unusual[0] == set(), "180 images give none a typicality of .001"
    assert unusual[0] <= unusual[1] <= unusual[2] <= unusual[3]
    assert len(unusual[2]) < len(digits) / 2
    assert len(unusual[3]) > len(digits) / 2


@pytest.fixture(scope="module")
def strict_limits(bundle_folder: Path) -> dict[str, float]:
    """The limits of the highest confidence threshold that the bundle's validation images give."""
    calibrator = read_calibrator(open_bundle(bundle_folder))
    assert calibrator is not None
    max_false_alarm = 0.01
    thresholds = {
        risk: threshold
        for risk in np.linspace(0.01, 0.2, 39).round(3).tolist()
        if (threshold := calibrator.threshold(risk, max_false_alarm)) is not None
    }
    strictest = max(thresholds, key=thresholds.__getitem__)
    return {"max_risk": strictest, "max_false_alarm": max_false_alarm}


@pytest.mark.parametrize("method", ["samples=64", "samples=auto", "method=analytic", "samples=1"])
def test_every_route_abstains_from_the_same_images_for_the_same_reasons(
    calibrated: Application, digits: Pixels, method: str, strict_limits: dict[str, float]
) -> None:
    """Noise is unusual or both; digits upside down are unsure, both, or taken for others."""
    noise = np.random.default_rng(0).integers(0, 256, digits[:40].shape, np.uint8)
    pixels = np.concatenate([digits, digits[:100, ::-1], noise, np.zeros_like(digits[:1])])
    limits = strict_limits
    query = "&".join([method, *(f"{name}={value}" for name, value in limits.items())])
    native = post_images(calibrated, pixels, query).predictions
    reasons = [each.abstain_because for each in native]
    assert [each.abstain for each in native] == [reason is not None for reason in reasons]
    assert set(reasons) == {None, "unsure", "unusual", "both"}
    name, _, value = method.partition("=")
    described = {"name": "images", "shape": [len(pixels), 1, 8, 8], "datatype": "UINT8"}
    request = {
        "inputs": [described | {"data": pixels.ravel().tolist()}],
        "parameters": {name: value, **limits},
    }
    answer = calibrated.post("/v2/models/digits-mc/infer", orjson.dumps(request)).json()
    assert answer["parameters"].items() >= limits.items()
    tensors = {each["name"]: each for each in answer["outputs"]}
    assert tensors["abstain_because"]["data"] == [reason or "" for reason in reasons]
    assert tensors["abstain"]["data"] == [each.abstain for each in native]
    typicality = [each.typicality for each in native]
    assert tensors["typicality"]["data"] == pytest.approx(typicality)
    plain = predictions(
        calibrated.post("/predict", instances([encode(each) for each in pixels]), headers=JSON)
    )
    assert [each["typicality"] for each in plain] == typicality


def test_v1_has_the_outputs_of_v2(calibrated: Application, digit: Pixels) -> None:
    sent = {"instances": [(digit / 255).tolist()]}
    (row,) = calibrated.post("/v1/models/digits-mc:predict", orjson.dumps(sent)).json()[
        "predictions"
    ]
    (native,) = post_images(calibrated, digit[None]).predictions
    assert row["abstain"] is native.abstain
    assert row["abstain_because"] == (native.abstain_because or "")
    assert row["typicality"] == pytest.approx(native.typicality)


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


def test_coverage_and_limits_change_no_other_field(calibrated: Application, digit: Pixels) -> None:
    answers: list[Any] = []
    for query in ("", "?coverage=0.5&sets=aps&max_risk=0.3&max_false_alarm=0.2"):
        (each,) = predictions(calibrated.post(f"/uncertainty{query}", encode(digit), headers=PNG))
        answers.append({name: value for name, value in each.items() if name not in DECISION_FIELDS})
    assert answers[0] == answers[1]


DECISION_FIELDS = {"prediction_set", "abstain", "abstain_because"}


def test_uncertainty_of_an_uncalibrated_bundle_has_null_decisions(
    uncalibrated: Application, calibrated: Application, digits: Pixels
) -> None:
    answer = post_images(uncalibrated, digits[:8])
    assert answer.calibration == "uncalibrated"
    assert (answer.coverage, answer.max_risk, answer.max_false_alarm) == (None, None, None)
    for each in answer.predictions:
        assert (each.prediction_set, each.typicality) == (None, None)
        assert (each.abstain, each.abstain_because) == (None, None)
    (plain,) = predictions(uncalibrated.post("/predict", encode(digits[0]), headers=PNG))
    assert plain["typicality"] is None
    fitted = post_images(calibrated, digits[:8])
    assert fitted.predictions[0].probabilities != answer.predictions[0].probabilities
    labels = {"model": "digits", "version": "1"}
    assert uncalibrated.metric("dropserve_abstentions_total", **labels) == 0


def test_v2_does_not_declare_abstention_of_an_uncalibrated_model(
    uncalibrated: Application, digit: Pixels
) -> None:
    values = (digit[None, None] / 255).astype(np.float32)
    described = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32"}
    request = {
        "inputs": [described | {"data": values.ravel().tolist()}],
        "parameters": {"max_risk": 0.1},
    }
    answer = uncalibrated.post("/v2/models/digits-mc/infer", orjson.dumps(request)).json()
    names = [each["name"] for each in answer["outputs"]]
    assert names[-1] == "label"
    metadata = uncalibrated.get("/v2/models/digits-mc").json()
    assert [each["name"] for each in metadata["outputs"]] == names
    assert set(answer["parameters"]) == {"method", "samples", "seed"}


def test_metrics_count_typicality_prediction_sets_and_abstentions(
    models_folder: Path, digits: Pixels
) -> None:
    with serving_models(models_folder) as service:
        answer = post_images(service, digits[:50], "max_risk=0.02&max_false_alarm=0.2")
        abstained = sum(bool(each.abstain) for each in answer.predictions)
        names = ("dropserve_typicality_count", "dropserve_prediction_set_classes_count")
        labels = {"model": "digits", "version": "1"}
        assert [service.metric(name, **labels) for name in names] == [50, 50]
        classes = service.metric("dropserve_prediction_set_classes_sum", **labels)
        assert classes == sum(map(len, sets(answer)))
        assert service.metric("dropserve_abstentions_total", **labels) == abstained
        reasons = [each.abstain_because for each in answer.predictions]
        for reason in ("unsure", "unusual", "both"):
            name = "dropserve_abstentions_by_reason_total"
            found = service.metric(name, **labels, reason=reason)
            assert found == reasons.count(reason)
        assert abstained


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
