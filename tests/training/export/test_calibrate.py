from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import MIN_CALIBRATION_IMAGES
from model.uncertainty.uncertainty_measures import softmax
from training.config import TrainingConfig
from training.data.dataset import Dataset, load_dataset
from training.export.calibrate import calibrate, fit_relative_mahalanobis, fit_temperature


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(TrainingConfig(data="digits"))


@pytest.fixture
def uncalibrated(bundle_folder: Path) -> Predictor:
    layers = open_bundle(bundle_folder).manifest.dropout_layers
    return Predictor.open(bundle_folder, layers)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_temperature_finds_the_temperature_of_overconfident_logits(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50_000, 5)) * 2
    probabilities = softmax(logits)
    labels = (probabilities.cumsum(axis=1) > generator.random((50_000, 1))).argmax(axis=1)
    found = fit_temperature(lambda candidate: softmax(logits * temperature / candidate), labels)
    assert found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("count", [100, 5_000])
def test_fit_temperature_stays_uncertain_when_all_predictions_are_correct(count: int) -> None:
    logits = np.eye(5)[np.arange(count) % 5] * 4.0
    labels = np.arange(count) % 5
    found = fit_temperature(lambda candidate: softmax(logits / candidate), labels)
    wrong = 1 - softmax(logits / found)[0, 0]
    assert wrong == pytest.approx(0.5 / (count + 1), rel=0.02)


def test_fit_relative_mahalanobis_whitens_the_features_of_a_class() -> None:
    generator = np.random.default_rng(2)
    mixing = generator.normal(size=(6, 6))
    labels = generator.integers(0, 3, 5_000)
    noise = generator.normal(size=(5_000, 6))
    features = (noise @ mixing + 8 * labels[:, np.newaxis]).astype(np.float32)
    density = fit_relative_mahalanobis(features, labels)
    places = features.astype(np.float64) @ density.axes
    for label, centre in enumerate(density.centres):
        np.testing.assert_allclose(places[labels == label, :6].mean(axis=0), centre, atol=1e-6)
    np.testing.assert_allclose(places[:, 6:].mean(axis=0), density.middle, atol=1e-6)
    inside = places[:, :6] - density.centres[labels]
    deviations = inside.std(axis=0)
    assert deviations.max() < 1.1
    assert deviations[-1] == pytest.approx(1, abs=0.1), "along the longest axis"


def test_fit_relative_mahalanobis_projects_wide_features() -> None:
    generator = np.random.default_rng(3)
    features = generator.random((400, 300)).astype(np.float32)
    density = fit_relative_mahalanobis(features, generator.integers(0, 2, 400))
    assert density.axes.shape == (300, 512)
    assert density.centres.shape == (2, 256)
    assert np.isfinite(density.score(features)).all()


def test_calibrate_fits_a_real_bundle_on_its_validation_images(
    uncalibrated: Predictor, digits: Dataset
) -> None:
    fitted = calibrate(uncalibrated, digits)
    assert fitted is not None
    assert fitted.parameters.images == len(digits.validation)
    prediction = uncalibrated.predict(to_float(digits.validation.images))
    typicality = fitted.typicality(fitted.ood_scores(prediction.features))
    assert typicality.mean() == pytest.approx(0.5, abs=0.01)
    assert typicality.min() > 1 / (len(typicality) + 1)
    assert typicality.max() == 1
    noise = np.random.default_rng(4).random((200, 1, 8, 8)).astype(np.float32)
    noise_typicality = uncalibrated.with_calibrator(fitted).predict(noise).typicality
    assert noise_typicality.mean() < 0.2
    assert calibrate(uncalibrated, digits) is not None, "a second calibration"


def test_calibrate_reproduces_the_calibration_in_the_bundle(
    uncalibrated: Predictor, bundle_folder: Path, digits: Dataset
) -> None:
    stored = load_predictor(open_bundle(bundle_folder))
    fitted = calibrate(uncalibrated, digits)
    assert fitted is not None
    assert stored.calibrator is not None
    assert stored.calibrator.parameters == fitted.parameters
    images = to_float(digits.test.images[:20])
    refitted, served = (
        each.uncertainty(each.predict(images), FixedSamples(0, 64))
        for each in (uncalibrated.with_calibrator(fitted), stored)
    )
    np.testing.assert_array_equal(refitted.typicality, served.typicality)
    np.testing.assert_array_equal(refitted.mean_probabilities, served.mean_probabilities)


def test_calibrate_returns_none_for_too_few_images(
    uncalibrated: Predictor, digits: Dataset
) -> None:
    few = digits.validation.take(np.arange(MIN_CALIBRATION_IMAGES - 1))
    assert calibrate(uncalibrated, replace(digits, validation=few)) is None


def test_fit_relative_mahalanobis_accepts_constant_features() -> None:
    dead = np.zeros((50, 4), np.float32)
    density = fit_relative_mahalanobis(dead, np.arange(50) % 2)
    images = np.concatenate([dead[:2], np.full((2, 4), 0.5, np.float32)])
    scores = density.score(images)
    assert np.isfinite(scores).all()
    assert (scores <= scores[0]).all()
