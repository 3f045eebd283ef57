from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from model.bundle.architecture_description import Architecture
from model.bundle.store import MODEL_FILE, open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.errors import ExportError
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import MIN_CALIBRATION_IMAGES
from model.uncertainty.uncertainty_measures import softmax
from training.config import TrainingConfig
from training.data.dataset import Dataset, load_dataset
from training.export.calibrate import (
    add_cross_fitted_score,
    add_ood_score,
    calibrate,
    calibrate_held_out,
    fit_temperature,
    mean_probabilities,
)
from training.export.cross_fitted_outputs import HeldOut
from training.export.to_onnx import export_graphs
from training.network.classifier import build_classifier

Images = NDArray[np.float32]


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
    found = fit_temperature((logits * temperature)[:, np.newaxis], labels)
    assert found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("count", [100, 5_000])
def test_fit_temperature_stays_uncertain_when_all_predictions_are_correct(count: int) -> None:
    logits = np.eye(5)[np.arange(count) % 5] * 4.0
    labels = np.arange(count) % 5
    found = fit_temperature(logits[:, np.newaxis], labels)
    wrong = 1 - softmax(logits / found)[0, 0]
    assert wrong == pytest.approx(0.5 / (count + 1), rel=0.02)


@pytest.mark.parametrize("factor", [1e-4, 0.01, 3.0, 100.0, 1e4])
def test_temperature_grows_with_the_logits_and_leaves_the_probabilities(factor: float) -> None:
    """As those of a cosine classifier that was exported without its scale."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 300)
    signal = 3 * np.eye(4)[labels, np.newaxis]
    logits = (signal + generator.normal(size=(300, 8, 4))).astype(np.float32)
    scaled = logits * np.float32(factor)
    temperature, found = fit_temperature(logits, labels), fit_temperature(scaled, labels)
    assert found == pytest.approx(factor * temperature, rel=1e-5)
    np.testing.assert_allclose(
        mean_probabilities(scaled, found), mean_probabilities(logits, temperature), atol=1e-5
    )


def held_out_outputs(signal: float) -> HeldOut:
    """Return the outputs for 200 images, with the true class's logit higher by `signal`."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 3, 200)
    noise = generator.normal(size=(200, 16, 3))
    sampled = (signal * np.eye(3)[labels, np.newaxis] + noise).astype(np.float32)
    features = generator.random((200, 2), dtype=np.float32)
    sampling = FixedSamples(seed=3, samples=16)
    return HeldOut(
        *(labels, sampled.mean(axis=1), features, features[:, 0], sampling, sampled.__getitem__)
    )


@pytest.mark.parametrize(
    ("signal", "max_risk", "warned"),
    [
        (5.0, 0.05, []),
        (0.3, 0.2, ["no risk up to 20 % can be shown"]),
        (-3.0, 0.2, ["no temperature calibrates", "no risk up to 20 % can be shown"]),
    ],
)
def test_calibration_warns_where_nothing_useful_can_be_fitted(
    signal: float, max_risk: float, warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    fitted = calibrate_held_out(held_out_outputs(signal))
    parameters = fitted.parameters
    assert (parameters.max_risk, parameters.samples, parameters.seed) == (max_risk, 16, 3)
    assert len(caplog.messages) == len(warned)
    for message, phrase in zip(caplog.messages, warned, strict=True):
        assert message.startswith(f"Warning: {phrase}")


def test_calibrate_fits_a_real_bundle_on_its_validation_images(
    uncalibrated: Predictor, digits: Dataset
) -> None:
    fitted = calibrate(uncalibrated, digits)
    assert fitted is not None
    assert fitted.parameters.images == len(digits.validation)
    prediction = uncalibrated.predict(to_float(digits.validation.images))
    assert prediction.ood_scores is not None
    typicality = fitted.typicality(prediction.ood_scores)
    assert typicality.mean() == pytest.approx(0.5, abs=0.01)
    assert typicality.min() > 1 / (len(typicality) + 1)
    assert typicality.max() == 1
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


class CountingImages(np.ndarray[Any, np.dtype[np.uint8]]):
    """Images that count how many of them are converted at the same time."""

    counts: ClassVar[list[int]] = []

    def astype(self, *arguments: Any, **options: Any) -> Any:
        """Convert as plain images are."""
        self.counts.append(len(self))
        return self.view(np.ndarray).astype(*arguments, **options)


def test_images_become_floats_batch_by_batch(
    tmp_path: Path, uncalibrated: Predictor, digits: Dataset
) -> None:
    """All together may need more memory than there is."""
    train, validation = digits.train.take(np.arange(300)), digits.validation
    train = replace(train, images=train.images.view(CountingImages))
    validation = replace(validation, images=validation.images.view(CountingImages))
    data = replace(digits, train=train, validation=validation)
    network = build_classifier(Architecture(classes=10, input=data.input))
    export_graphs(network, (1, 8, 8), tmp_path, with_statistics=True)
    graph, copy = tmp_path / MODEL_FILE, tmp_path / "copy.onnx"
    copy.write_bytes(graph.read_bytes())
    add_ood_score(graph, data, pixels=2)
    logits, folds = np.eye(10, dtype=np.float32)[train.labels], np.arange(300) % 2
    add_cross_fitted_score(copy, data, logits, folds, pixels=2)
    calibrate(uncalibrated, data)
    assert sum(CountingImages.counts) == 2 * len(train) + len(validation)
    assert max(CountingImages.counts) <= 64


def test_calibrate_needs_a_graph_with_scores(tmp_path: Path, digits: Dataset) -> None:
    network = build_classifier(Architecture(classes=10, input=digits.input))
    export_graphs(network, (1, 8, 8), tmp_path)
    predictor = Predictor.open(tmp_path, network.head.dropout_layers)
    with pytest.raises(ExportError, match="computes no out-of-distribution scores; export it with"):
        calibrate(predictor, digits)


@pytest.fixture(scope="module")
def calibrated(bundle_folder: Path) -> Predictor:
    return load_predictor(open_bundle(bundle_folder))


def test_typicality_of_test_images_is_spread_evenly(calibrated: Predictor, digits: Dataset) -> None:
    """The largest difference from even, with both samples' size (Kolmogorov & Smirnov): p > .01."""
    typicality = np.sort(calibrated.predict(to_float(digits.test.images)).typicality)
    ranks = np.arange(len(typicality) + 1) / len(typicality)
    difference = max((ranks[1:] - typicality).max(), (typicality - ranks[:-1]).max())
    assert difference < 1.63 * np.sqrt(1 / len(digits.test) + 1 / len(digits.validation))


def even_images() -> Images:
    """Return the images of one grey level each, [256, 1, 8, 8]."""
    levels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return to_float(np.broadcast_to(levels, (256, 1, 8, 8)))


def shuffled(images: Images, generator: np.random.Generator) -> Images:
    """Return images with their pixels in random order."""
    return generator.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


STRANGE: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "blank": lambda images, generator: even_images(),
    "uniform noise": lambda images, generator: generator.random(images.shape, dtype=np.float32),
    "Gaussian noise": lambda images, generator: np.clip(
        generator.normal(0.5, 0.25, images.shape), 0, 1
    ).astype(np.float32),
    "inverted": lambda images, generator: 1 - images,
    "shuffled": shuffled,
    "dimmed": lambda images, generator: images * np.float32(0.3),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_images_unlike_any_digit_have_the_least_typicality(
    calibrated: Predictor, digits: Dataset, kind: str
) -> None:
    """Measured with ReLU: all of them, but 99.7 % of the shuffled ones in one of five trainings."""
    images = STRANGE[kind](to_float(digits.test.images), np.random.default_rng(4))
    typicality = calibrated.predict(images).typicality
    least = 1 / (len(digits.validation) + 1)
    assert np.isclose(typicality, least).mean() >= 0.95
