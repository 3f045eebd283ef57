from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from scipy.stats import kstest
from sklearn.base import BaseEstimator, ClassifierMixin

from model.npz_arrays import ArchiveError
from model.uncertainty.calibration import (
    Calibration,
    CalibrationArrays,
    Calibrator,
    Float64Array,
    SetKind,
    aps_scores,
    uniform_draws,
)
from model.uncertainty.uncertainty_measures import softmax
from training.export.calibrate import risk_bounds

CLASSES = 6


def draw_predictions(generator: np.random.Generator, images: int) -> tuple[Float64Array, Any]:
    """Return perfectly calibrated probabilities and true classes."""
    probabilities = softmax(generator.normal(size=(images, CLASSES)) * 3)
    labels = (probabilities.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return probabilities, labels


def fit_calibrator(probabilities: Float64Array, labels: Any, draws: Float64Array) -> Calibrator:
    rows = np.arange(len(labels))
    confidences, bounds = risk_bounds(probabilities, labels)
    arrays = CalibrationArrays(
        thr=np.sort(1 - probabilities[rows, labels]),
        aps=np.sort(aps_scores(probabilities, draws)[rows, labels]),
        confidences=confidences,
        risk_bounds=bounds,
        axes=np.eye(2),
        centres=np.zeros((1, 1)),
        middle=np.zeros(1),
        nearness=np.arange(0.0, len(labels)),
    )
    parameters = Calibration(
        images=len(labels),
        temperature=1,
        sampled_temperature=1,
        samples=64,
        seed=0,
        max_risk=0.1,
        guarantee=0.95,
    )
    return Calibrator(parameters, arrays)


class IdentityClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A trained classifier for MAPIE; its input is the probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(CLASSES)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, probabilities: Float64Array) -> Any:
        return probabilities.argmax(axis=1)

    def predict_proba(self, probabilities: Float64Array) -> Float64Array:
        return probabilities


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("kind", "score"), [("thr", "lac"), ("aps", "aps")])
def test_prediction_sets_equal_those_of_mapie(coverage: float, kind: SetKind, score: str) -> None:
    generator = np.random.default_rng(3)
    known, labels = draw_predictions(generator, 501)
    new, _ = draw_predictions(generator, 400)
    reference = SplitConformalClassifier(
        IdentityClassifier(), confidence_level=coverage, conformity_score=score, random_state=5
    ).conformalize(known, labels)
    options = {"conformity_score_params": {"include_last_label": False}} if score == "aps" else {}
    expected = reference.predict_set(new, **options)[1][:, :, 0]
    # MAPIE draws the share of the true class's probability that does not count, here 1 - draw.
    draws = 1 - np.random.RandomState(5).uniform(size=501)
    ours = fit_calibrator(known, labels, draws).prediction_sets(new, coverage, kind, np.ones(400))
    if kind == "thr":  # where our set is empty, MAPIE adds the likeliest class
        nonempty = ours.any(axis=1)
        assert nonempty.mean() > 0.1
        ours, expected = ours[nonempty], expected[nonempty]
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_prediction_sets_have_the_stated_coverage_over_splits(kind: SetKind) -> None:
    generator = np.random.default_rng(4)
    coverages = []
    for _ in range(200):
        probabilities, labels = draw_predictions(generator, 400)
        draws = generator.random(400)
        known = fit_calibrator(probabilities[:200], labels[:200], draws[:200])
        sets = known.prediction_sets(probabilities[200:], 0.9, kind, draws[200:])
        coverages.append(sets[np.arange(200), labels[200:]].mean())
    upper_bound = 0.91 if kind == "thr" else 0.95  # aps sets always have the likeliest class
    assert 0.895 < np.mean(coverages) < upper_bound


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_prediction_sets_have_every_class_if_images_are_too_make_arrays(kind: SetKind) -> None:
    probabilities, labels = draw_predictions(np.random.default_rng(5), 150)
    known = fit_calibrator(probabilities, labels, np.full(150, 0.5))
    assert known.prediction_sets(probabilities, 0.999, kind, np.full(150, 0.5)).all()
    assert not known.prediction_sets(probabilities, 0.99, kind, np.full(150, 0.5)).all()


def test_threshold_keeps_the_risk_with_the_guaranteed_probability() -> None:
    """The probabilities are perfectly calibrated, so the true risk is known."""
    generator = np.random.default_rng(6)
    true_accuracy = softmax(generator.normal(size=(100_000, CLASSES)) * 3).max(axis=1)
    violations = found = 0
    for _ in range(300):
        known = fit_calibrator(*draw_predictions(generator, 1_000), np.full(1_000, 0.5))
        threshold = known.threshold(0.1)
        if threshold is not None:
            found += 1
            violations += (1 - true_accuracy[true_accuracy >= threshold]).mean() > 0.1
    assert found > 250
    assert violations / 300 <= 0.05


def test_threshold_is_none_for_a_risk_that_the_images_cannot_show() -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(7), 200), np.full(200, 0.5))
    assert known.threshold(1e-6) is None
    assert known.threshold(0.999) == known.threshold(0.99)


def make_arrays(**changes: Any) -> CalibrationArrays:
    """Arrays of 20 images, 3 classes, 4 features."""
    scores = np.linspace(0, 1, 20)
    arrays: dict[str, Any] = {
        "thr": scores,
        "aps": scores,
        "confidences": 1 - scores,
        "risk_bounds": scores,
        "axes": np.ones((4, 8)),
        "centres": np.ones((3, 4)),
        "middle": np.ones(4),
        "nearness": scores,
    }
    return CalibrationArrays(**arrays | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"thr": np.linspace(1, 0, 20)},
        {"confidences": np.linspace(0, 1, 20)},
        {"risk_bounds": np.full(20, np.nan)},
        {"nearness": np.full(20, np.inf)},
        {"aps": np.linspace(0, 1, 19)},
        {"aps": np.linspace(0, 1, 20).astype(np.float32)},
        {"thr": np.zeros((20, 1))},
        {"axes": np.ones((4, 7))},
        {"centres": np.ones((3, 5))},
        {"middle": np.ones((4, 1))},
        {"axes": np.ones(8)},
    ],
)
def test_calibration_arrays_refuse_inconsistent_arrays(changes: dict[str, Any]) -> None:
    assert make_arrays().threshold(0.5) is not None
    with pytest.raises(ValueError, match="its arrays do not fit one another"):
        make_arrays(**changes)


@pytest.mark.parametrize(
    ("bounds", "accepted"),
    [
        ([0.9] * 5 + [0.1] * 10 + [0.9] * 5, 15),
        ([0.1] * 3 + [0.9] * 17, 3),
        ([0.9] * 19 + [0.1], 20),
        ([0.1] * 6 + [0.9] + [0.1] * 6 + [0.9] * 7, 13),
        ([0.1, 0.9] * 10, 0),
    ],
)
def test_threshold_search_starts_at_any_tenth_and_ends_at_the_first_exceeded_bound(
    bounds: list[float], accepted: int
) -> None:
    confidences = np.linspace(1, 0, 20)
    arrays = make_arrays(confidences=confidences, risk_bounds=np.array(bounds))
    assert arrays.threshold(0.5) == (confidences[accepted - 1] if accepted else None)


def test_uniform_draws_are_uniform_and_reproducible() -> None:
    features = np.random.default_rng(8).random((2_000, 9)).astype(np.float32)
    draws = uniform_draws(features)
    assert kstest(draws, "uniform").pvalue > 0.01
    np.testing.assert_array_equal(uniform_draws(features[5:9]), draws[5:9])


def test_calibration_file_is_read_as_written_and_damage_is_refused(tmp_path: Path) -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(9), 100), np.full(100, 0.5))
    file = tmp_path / "calibration.npz"
    known.write(file)
    content = file.read_bytes()
    with np.load(file) as archive:
        features, classes = len(archive["axes"]), len(archive["centres"])
    read = CalibrationArrays.read(content, 100, features, classes)
    assert read.thr.tolist() == sorted(read.thr.tolist())
    np.savez(file, thr=read.thr)
    for damaged in (content[:100], b"", b"PK", b"nonsense", file.read_bytes()):
        with pytest.raises(ArchiveError):
            CalibrationArrays.read(damaged, 100, features, classes)
    for images, width, most in ((99, features, classes), (100, features - 1, classes)):
        with pytest.raises(ArchiveError, match="larger than it may"):
            CalibrationArrays.read(content, images, width, most)
