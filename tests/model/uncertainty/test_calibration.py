"""Typicality, abstention and the file of the calibration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.npz_arrays import ArchiveError
from model.uncertainty.calibration import (
    DEFAULT_MAX_FALSE_ALARM,
    MIN_CALIBRATION_IMAGES,
    CalibrationArrays,
)
from model.uncertainty.selective_risk import confidence_threshold
from model.uncertainty.uncertainty_measures import softmax
from tests.model.uncertainty.predictions import (
    CLASSES,
    Floats,
    Labels,
    draw_labels,
    draw_predictions,
    fit_calibrator,
)


def test_typicality_is_the_share_of_scores_that_are_not_higher_with_its_own() -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(0), 199))  # scores 0 to 198
    scores = np.array([-1.0, 0.0, 0.5, 198.0, 1e9, np.nan, np.inf, -np.inf])
    ranks = known.typicality(scores) * 200
    np.testing.assert_allclose(ranks, [1, 2, 2, 200, 200, 1, 1, 1])


@pytest.mark.parametrize("max_false_alarm", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("distinct", [True, False])
def test_share_of_unusual_images_is_at_most_the_false_alarm_rate(
    max_false_alarm: float, distinct: bool
) -> None:
    """On average it is floor((n + 1) a) / (n + 1), and less if some scores are equal."""
    generator = np.random.default_rng(1)
    probabilities, labels = draw_predictions(generator, 150)
    shares = []
    for _ in range(400):
        scores = generator.normal(size=400)
        scores = scores if distinct else np.round(scores)
        known = fit_calibrator(probabilities, labels, ood_scores=scores[:150])
        shares.append((known.typicality(scores[150:]) <= max_false_alarm).mean())
    noise = 4 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= max_false_alarm + noise
    if distinct:
        exact = np.floor(151 * max_false_alarm) / 151
        assert np.mean(shares) == pytest.approx(exact, abs=noise)


def test_no_image_is_unusual_at_a_false_alarm_rate_below_the_least_typicality() -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(2), 149))
    least = known.typicality(np.array([-1e9]))
    assert least.tolist() == [1 / 150]
    for rate, unusual in ((0.006, False), (1 / 150, True), (DEFAULT_MAX_FALSE_ALARM, True)):
        decided = known.abstentions(np.ones(1), least, 0.5, rate)
        assert decided.unusual.tolist() == [unusual]


def test_default_false_alarm_rate_can_be_shown_by_the_fewest_images() -> None:
    assert 1 / (MIN_CALIBRATION_IMAGES + 1) <= DEFAULT_MAX_FALSE_ALARM


def draw_scored(generator: np.random.Generator, images: int) -> tuple[Floats, Labels, Floats]:
    """Return predictions that are worse than they claim where the OOD score is low."""
    scores = generator.random(images)
    probabilities = softmax(generator.normal(size=(images, CLASSES)) * 3)
    weights = np.minimum(0.4 + scores, 1)[:, np.newaxis]
    true_probabilities = weights * probabilities + (1 - weights) / CLASSES
    return probabilities, draw_labels(generator, true_probabilities), scores


@pytest.mark.parametrize("max_false_alarm", [0.004, 0.1, 0.5])
def test_answered_images_keep_the_risk_with_the_guaranteed_probability(
    max_false_alarm: float,
) -> None:
    """The validation images that set the limit of the unusual ones also set the confidence."""
    generator = np.random.default_rng(6)
    probabilities, labels, scores = draw_scored(generator, 60_000)
    wrong = probabilities.argmax(axis=1) != labels
    confidences = probabilities.max(axis=1)
    violations = found = 0
    for _ in range(200):
        known_probabilities, known_labels, known_scores = draw_scored(generator, 600)
        known = fit_calibrator(known_probabilities, known_labels, ood_scores=known_scores)
        decided = known.abstentions(confidences, known.typicality(scores), 0.3, max_false_alarm)
        answered = ~decided.abstain
        found += bool(answered.any())
        violations += bool(answered.any() and wrong[answered].mean() > 0.3)
    assert found > 150
    assert violations / 200 <= 0.05


def test_threshold_keeps_the_risk_with_the_guaranteed_probability() -> None:
    """The probabilities are perfectly calibrated, so the true risk is known."""
    generator = np.random.default_rng(6)
    true_accuracy = softmax(generator.normal(size=(100_000, CLASSES)) * 3).max(axis=1)
    violations = found = 0
    for _ in range(300):
        known = fit_calibrator(*draw_predictions(generator, 1_000))
        threshold = known.threshold(0.1, 0.01)
        if threshold is not None:
            found += 1
            violations += (1 - true_accuracy[true_accuracy >= threshold]).mean() > 0.1
    assert found > 250
    assert violations / 300 <= 0.05


@pytest.mark.parametrize("max_false_alarm", [0.001, 0.02, 0.5, 0.999])
def test_threshold_leaves_out_the_validation_images_up_to_the_limit(max_false_alarm: float) -> None:
    generator = np.random.default_rng(3)
    probabilities, labels, scores = draw_scored(generator, 500)
    known = fit_calibrator(probabilities, labels, ood_scores=scores)
    limit = int(501 * max_false_alarm)  # this many validation images are left out
    usual = np.argsort(scores)[limit:]
    usual = usual[np.argsort(-probabilities[usual].max(axis=1))]
    correct = probabilities[usual].argmax(axis=1) == labels[usual]
    confidences = probabilities[usual].max(axis=1)
    expected = confidence_threshold(confidences, correct, 0.4, 1 - known.parameters.guarantee)
    assert known.threshold(0.4, max_false_alarm) == expected
    new = known.typicality(scores)
    # An image at the limit itself counts as usual: its own score is one of those not higher.
    assert (new <= max_false_alarm).sum() == max(limit - 1, 0)


def test_threshold_is_none_for_a_risk_that_the_images_cannot_show() -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(7), 200))
    assert known.threshold(1e-6, 0.01) is None
    assert known.threshold(0.999, 0.01) == known.threshold(0.99, 0.01)
    confident = known.abstentions(np.ones(3), np.ones(3), 1e-6, 0.01)
    assert confident.unsure.all(), "without a threshold, every prediction is unsure"


def test_reasons_say_why_a_prediction_abstains() -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(8), 300))
    decided = known.abstentions(
        np.array([1, 0, 1, 0.0]), np.array([0.9, 0.9, 0.01, 0.01]), 0.5, 0.02
    )
    assert decided.reasons() == [None, "unsure", "unusual", "both"]
    assert decided.abstain.tolist() == [False, True, True, True]
    assert decided.reason_numbers.tolist() == [0, 1, 2, 3]
    assert (decided.max_risk, decided.max_false_alarm) == (0.5, 0.02)


def make_arrays(**changes: Any) -> CalibrationArrays:
    """Arrays of 20 images, 3 classes."""
    scores = np.linspace(0, 1, 20)
    arrays: dict[str, Any] = {
        "confidences": 1 - scores,
        "correct": np.ones(20, np.bool_),
        "true_classes": np.arange(20) % 3,
        "thr": scores,
        "aps": scores,
        "ood_scores": scores,
    }
    return CalibrationArrays(**arrays | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"confidences": np.linspace(0, 1, 20)},
        {"correct": np.ones(20)},
        {"correct": np.ones(19, np.bool_)},
        {"true_classes": np.full(20, -1)},
        {"true_classes": np.zeros(20)},
        {"ood_scores": np.full(20, np.inf)},
        {"thr": np.full(20, np.nan)},
        {"aps": np.linspace(0, 1, 19)},
        {"aps": np.linspace(0, 1, 20).astype(np.float32)},
        {"thr": np.zeros((20, 1))},
    ],
)
def test_calibration_arrays_refuse_inconsistent_arrays(changes: dict[str, Any]) -> None:
    assert make_arrays().threshold(0.5, 0.01, 0.95) is not None
    with pytest.raises(ValueError, match="its arrays do not fit one another"):
        make_arrays(**changes)


def test_calibration_file_is_read_as_written_and_damage_is_refused(tmp_path: Path) -> None:
    known = fit_calibrator(*draw_predictions(np.random.default_rng(9), 100))
    file = tmp_path / "calibration.npz"
    known.write(file)
    content = file.read_bytes()
    with np.load(file) as archive:
        written = dict(archive)
    read = CalibrationArrays.read(content, 100, CLASSES)
    for name, array in read.model_dump().items():
        np.testing.assert_array_equal(array, written[name])
    np.savez(file, thr=read.thr)
    for damaged in (content[:100], b"", b"PK", b"nonsense", file.read_bytes()):
        with pytest.raises(ArchiveError):
            CalibrationArrays.read(damaged, 100, CLASSES)
    with pytest.raises(ArchiveError, match="larger than it may"):
        CalibrationArrays.read(content, 99, CLASSES)
    with pytest.raises(ArchiveError, match="a class that the model does not have"):
        CalibrationArrays.read(content, 100, CLASSES - 1)
