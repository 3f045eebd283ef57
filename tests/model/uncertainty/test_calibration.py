from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from scipy.stats import kstest
from sklearn.base import BaseEstimator, ClassifierMixin

from model.npz import ArchiveError
from model.uncertainty.calibration import (
    Arrays,
    Calibration,
    Calibrator,
    Floats,
    SetKind,
    aps_scores,
    uniform_draws,
)
from model.uncertainty.summary import softmax
from training.export.calibrate import risk_bounds

CLASSES = 6


def answers(generator: np.random.Generator, images: int) -> tuple[Floats, Any]:
    """Probabilities that are right as often as they say, and true classes."""
    probabilities = softmax(generator.normal(size=(images, CLASSES)) * 3)
    labels = (probabilities.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return probabilities, labels


def calibrated(probabilities: Floats, labels: Any, draws: Floats) -> Calibrator:
    rows = np.arange(len(labels))
    confidences, bounds = risk_bounds(probabilities, labels)
    arrays = Arrays(
        thr=np.sort(1 - probabilities[rows, labels]),
        aps=np.sort(aps_scores(probabilities, draws)[rows, labels]),
        confidences=confidences,
        risk_bounds=bounds,
        axes=np.eye(2),
        centres=np.zeros((1, 1)),
        middle=np.zeros(1),
        nearness=np.arange(0.0, len(labels)),
    )
    numbers = Calibration(
        images=len(labels),
        temperature=1,
        sampled_temperature=1,
        samples=64,
        seed=0,
        max_risk=0.1,
        guarantee=0.95,
    )
    return Calibrator(numbers, arrays)


class Known(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What MAPIE takes for a trained classifier: its input is the probabilities themselves."""

    def __init__(self) -> None:
        self.classes_ = np.arange(CLASSES)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, probabilities: Floats) -> Any:
        return probabilities.argmax(axis=1)

    def predict_proba(self, probabilities: Floats) -> Floats:
        return probabilities


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("kind", "score"), [("thr", "lac"), ("aps", "aps")])
def test_prediction_sets_are_those_of_mapie(coverage: float, kind: SetKind, score: str) -> None:
    generator = np.random.default_rng(3)
    known, labels = answers(generator, 501)
    new, _ = answers(generator, 400)
    reference = SplitConformalClassifier(
        Known(), confidence_level=coverage, conformity_score=score, random_state=5
    ).conformalize(known, labels)
    options = {"conformity_score_params": {"include_last_label": False}} if score == "aps" else {}
    expected = reference.predict_set(new, **options)[1][:, :, 0]
    # MAPIE draws the part of a true class's probability that does not count, and then counts all.
    draws = 1 - np.random.RandomState(5).uniform(size=501)
    ours = calibrated(known, labels, draws).prediction_sets(new, coverage, kind, np.ones(400))
    if kind == "thr":  # where ours is empty, MAPIE names the likeliest class all the same
        some = ours.any(axis=1)
        assert some.mean() > 0.1
        ours, expected = ours[some], expected[some]
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_sets_cover_what_they_say_on_average_over_splits(kind: SetKind) -> None:
    generator = np.random.default_rng(4)
    held = []
    for _ in range(200):
        probabilities, labels = answers(generator, 400)
        draws = generator.random(400)
        known = calibrated(probabilities[:200], labels[:200], draws[:200])
        sets = known.prediction_sets(probabilities[200:], 0.9, kind, draws[200:])
        held.append(sets[np.arange(200), labels[200:]].mean())
    most = 0.91 if kind == "thr" else 0.95  # aps always has the likeliest class
    assert 0.895 < np.mean(held) < most


@pytest.mark.parametrize("kind", ["thr", "aps"])
def test_more_coverage_than_the_images_allow_takes_every_class(kind: SetKind) -> None:
    probabilities, labels = answers(np.random.default_rng(5), 150)
    known = calibrated(probabilities, labels, np.full(150, 0.5))
    assert known.prediction_sets(probabilities, 0.999, kind, np.full(150, 0.5)).all()
    assert not known.prediction_sets(probabilities, 0.99, kind, np.full(150, 0.5)).all()


def test_the_threshold_keeps_the_risk_as_often_as_guaranteed() -> None:
    """In a world where the confidence is the chance to be right: the true risk is known."""
    generator = np.random.default_rng(6)
    world = softmax(generator.normal(size=(100_000, CLASSES)) * 3).max(axis=1)
    broken = found = 0
    for _ in range(300):
        known = calibrated(*answers(generator, 1_000), np.full(1_000, 0.5))
        threshold = known.threshold(0.1)
        if threshold is not None:
            found += 1
            broken += (1 - world[world >= threshold]).mean() > 0.1
    assert found > 250
    assert broken / 300 <= 0.05


def test_no_threshold_keeps_what_no_image_shows() -> None:
    known = calibrated(*answers(np.random.default_rng(7), 200), np.full(200, 0.5))
    assert known.threshold(1e-6) is None
    assert known.threshold(0.999) == known.threshold(0.99)


def few(**changes: Any) -> Arrays:
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
    return Arrays(**arrays | changes)


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
def test_arrays_that_do_not_fit_one_another_are_refused(changes: dict[str, Any]) -> None:
    assert few().threshold(0.5) is not None
    with pytest.raises(ValueError, match="its arrays do not fit one another"):
        few(**changes)


@pytest.mark.parametrize(
    ("bounds", "answered"),
    [
        ([0.9] * 5 + [0.1] * 10 + [0.9] * 5, 15),
        ([0.1] * 3 + [0.9] * 17, 3),
        ([0.9] * 19 + [0.1], 20),
        ([0.1] * 6 + [0.9] + [0.1] * 6 + [0.9] * 7, 13),
        ([0.1, 0.9] * 10, 0),
    ],
)
def test_a_threshold_is_found_from_any_tenth_up_to_the_first_bound_that_fails(
    bounds: list[float], answered: int
) -> None:
    confidences = np.linspace(1, 0, 20)
    arrays = few(confidences=confidences, risk_bounds=np.array(bounds))
    assert arrays.threshold(0.5) == (confidences[answered - 1] if answered else None)


def test_drawn_numbers_are_uniform_and_always_the_same() -> None:
    features = np.random.default_rng(8).random((2_000, 9)).astype(np.float32)
    draws = uniform_draws(features)
    assert kstest(draws, "uniform").pvalue > 0.01
    np.testing.assert_array_equal(uniform_draws(features[5:9]), draws[5:9])


def test_the_file_is_read_as_written_and_damage_is_said(tmp_path: Path) -> None:
    known = calibrated(*answers(np.random.default_rng(9), 100), np.full(100, 0.5))
    file = tmp_path / "calibration.npz"
    known.write(file)
    content = file.read_bytes()
    with np.load(file) as archive:
        features, classes = len(archive["axes"]), len(archive["centres"])
    read = Arrays.read(content, 100, features, classes)
    assert read.thr.tolist() == sorted(read.thr.tolist())
    np.savez(file, thr=read.thr)
    for damaged in (content[:100], b"", b"PK", b"nonsense", file.read_bytes()):
        with pytest.raises(ArchiveError):
            Arrays.read(damaged, 100, features, classes)
    for images, width, most in ((99, features, classes), (100, features - 1, classes)):
        with pytest.raises(ArchiveError, match="larger than it may"):
            Arrays.read(content, images, width, most)
