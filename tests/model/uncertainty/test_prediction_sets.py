"""What prediction sets promise, on predictions whose truth is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from scipy.stats import kstest
from sklearn.base import BaseEstimator, ClassifierMixin

from model.uncertainty.prediction_sets import (
    SetKind,
    class_conditional_thresholds,
    conformal_threshold,
    uniform_draws,
)
from tests.model.uncertainty.predictions import (
    CLASSES,
    Floats,
    Labels,
    draw_labels,
    draw_predictions,
    fit_calibrator,
)

KINDS: tuple[SetKind, ...] = ("thr", "class-conditional", "aps")


class IdentityClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A trained classifier for MAPIE; its input is the probabilities."""

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
def test_prediction_sets_equal_those_of_mapie(coverage: float, kind: SetKind, score: str) -> None:
    """Where MAPIE leaves a set empty, ours is the likeliest class alone."""
    generator = np.random.default_rng(3)
    known, labels = draw_predictions(generator, 501)
    new, _ = draw_predictions(generator, 400)
    reference = SplitConformalClassifier(
        IdentityClassifier(), confidence_level=coverage, conformity_score=score, random_state=5
    ).conformalize(known, labels)
    options = {"conformity_score_params": {"include_last_label": False}} if score == "aps" else {}
    expected = reference.predict_set(new, **options)[1][:, :, 0]
    empty = ~expected.any(axis=1)
    expected[empty, new[empty].argmax(axis=1)] = True
    # MAPIE draws the share of the true class's probability that does not count, here 1 - draw.
    draws = 1 - np.random.RandomState(5).uniform(size=501)
    ours = fit_calibrator(known, labels, draws).prediction_sets(new, coverage, kind, np.ones(400))
    np.testing.assert_array_equal(ours, expected)


def test_threshold_has_the_exact_rank_where_the_product_has_a_rounding_error() -> None:
    """100 * .55 is a little more than 55 in floating point."""
    scores = np.arange(1.0, 100.0)
    assert conformal_threshold(scores, 0.55) == 55
    one_class = class_conditional_thresholds(scores, np.zeros(99, np.int64), 1, 0.55)
    assert one_class.tolist() == [55]


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 2**32),
    coverage=st.floats(0, 1, exclude_min=True, exclude_max=True),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
)
def test_prediction_set_always_has_the_likeliest_class(
    kind: SetKind, seed: int, coverage: float, scale: float
) -> None:
    generator = np.random.default_rng(seed)
    known = fit_calibrator(*draw_predictions(generator, 120), generator.random(120))
    new = np.exp(scale * -generator.random((30, CLASSES)))
    new /= new.sum(axis=1, keepdims=True)
    sets = known.prediction_sets(new, coverage, kind, generator.random(30))
    assert sets[np.arange(30), new.argmax(axis=1)].all()


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_sets_have_at_least_the_stated_coverage_over_splits(kind: SetKind) -> None:
    generator = np.random.default_rng(4)
    coverages = []
    for _ in range(200):
        probabilities, labels = draw_predictions(generator, 400)
        draws = generator.random(400)
        known = fit_calibrator(probabilities[:200], labels[:200], draws[:200])
        sets = known.prediction_sets(probabilities[200:], 0.9, kind, draws[200:])
        coverages.append(sets[np.arange(200), labels[200:]].mean())
    # Without the likeliest class, it is at most .9 + 1/201, or + 1/(n_c + 1) of each class.
    assert 0.895 < np.mean(coverages) < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_sets_have_every_class_if_images_are_too_few(kind: SetKind) -> None:
    probabilities, labels = draw_predictions(np.random.default_rng(5), 150)
    known = fit_calibrator(probabilities, labels)
    assert known.prediction_sets(probabilities, 0.999, kind, np.full(150, 0.5)).all()
    assert not known.prediction_sets(probabilities, 0.99, kind, np.full(150, 0.5)).all()


SHARES = np.array([0.4, 0.3, 0.15, 0.05, 0.05, 0.05])
"""Shares of the classes. Of 300 images, each has enough for a coverage of 80 %, which takes 4. Of
200 images, the last three have too few each for 95 %, which takes 19, and enough together."""
DIFFICULTIES = np.array([0.2, 0.5, 1.0, 2.0, 3.0, 3.0])
"""Noise of the logits of the images of each class: the sets of one threshold miss the last ones."""


def draw_unequal_classes(generator: np.random.Generator, images: int) -> tuple[Floats, Labels]:
    """Return probabilities that are not calibrated, and true classes of unequal shares."""
    labels = generator.choice(CLASSES, images, p=SHARES)
    noise = generator.normal(size=(images, CLASSES)) * DIFFICULTIES[labels, np.newaxis]
    powers = np.exp(2.0 * np.eye(CLASSES)[labels] + noise)
    return powers / powers.sum(axis=1, keepdims=True), labels


def class_shares(kind: SetKind, coverage: float, images: int, draws: int) -> tuple[Floats, float]:
    """Return the mean share of covered images by class, and that of the last three together.

    images: how many validation images there are in each of the draws.
    """
    generator = np.random.default_rng(6)
    covered, counts = np.zeros(CLASSES), np.zeros(CLASSES)
    for _ in range(draws):
        probabilities, labels = draw_unequal_classes(generator, images + 600)
        known = fit_calibrator(probabilities[:images], labels[:images])
        new, truth = probabilities[images:], labels[images:]
        # Of these alone there is an upper bound, not of sets to which the likeliest class is added.
        inside = 1 - new <= known._set_thresholds(kind, coverage, CLASSES)
        weights = inside[np.arange(len(new)), truth]
        covered += np.bincount(truth, weights=weights, minlength=CLASSES)
        counts += np.bincount(truth, minlength=CLASSES)
    return covered / counts, float(covered[3:].sum() / counts[3:].sum())


def test_class_conditional_sets_have_the_coverage_of_every_class() -> None:
    """The upper bound of a class is coverage + 1/(n_c + 1), .8 + .06 for the last ones."""
    shares, _ = class_shares("class-conditional", 0.8, 300, 300)
    assert (shares > 0.79).all()
    assert (shares < 0.87).all()
    of_one_threshold, _ = class_shares("thr", 0.8, 300, 300)
    assert of_one_threshold[0] > 0.95
    assert of_one_threshold[5] < 0.6


def test_rare_classes_have_the_coverage_together() -> None:
    shares, together = class_shares("class-conditional", 0.95, 200, 300)
    assert together > 0.94
    assert shares[3] > shares[5], "nothing is promised for each of them"


def test_class_conditional_thresholds_equal_those_of_each_class_alone() -> None:
    generator = np.random.default_rng(7)
    scores = np.sort(generator.random(2_000))
    labels = generator.choice(CLASSES, 2_000, p=SHARES)
    for coverage in (0.05, 0.5, 0.9, 0.99):
        found = class_conditional_thresholds(scores, labels, CLASSES, coverage)
        alone = [conformal_threshold(scores[labels == each], coverage) for each in range(CLASSES)]
        enough = np.isfinite(alone)
        np.testing.assert_array_equal(found[enough], np.array(alone)[enough])


@pytest.mark.parametrize(
    ("coverage", "expected"),
    [
        # Class 0 has 20 scores, 0.0 to 1.9; class 1 has 5, 2.0 to 2.4; class 2 has 6, 2.5 to 3.0;
        # class 3 has none. A coverage of 0.9 takes 9, so classes 1 to 3 are pooled: rank 11 of 11.
        (0.9, [1.8, 3.0, 3.0, 3.0]),
        # Of 0.95, the 11 pooled scores are too few, so the threshold is that of all 31: rank 31.
        (0.95, [1.9, 3.0, 3.0, 3.0]),
        # Of 0.5 every class but the empty one has enough; that one has the rank 16 of all.
        (0.5, [1.0, 2.2, 2.8, 1.5]),
        # No threshold reaches 0.99.
        (0.99, [np.inf] * 4),
    ],
)
def test_rare_classes_share_a_threshold(coverage: float, expected: list[float]) -> None:
    scores = np.arange(31) / 10
    labels = np.repeat([0, 1, 2], [20, 5, 6])
    found = class_conditional_thresholds(scores, labels, 4, coverage)
    np.testing.assert_allclose(found, expected)


def test_uniform_draws_are_uniform_and_reproducible() -> None:
    features = np.random.default_rng(8).random((2_000, 9)).astype(np.float32)
    draws = uniform_draws(features)
    assert kstest(draws, "uniform").pvalue > 0.01
    np.testing.assert_array_equal(uniform_draws(features[5:9]), draws[5:9])


def test_draw_labels_draws_by_the_probabilities() -> None:
    probabilities = np.tile([0.1, 0.2, 0.7], (30_000, 1))
    shares = np.bincount(draw_labels(np.random.default_rng(9), probabilities)) / 30_000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.01)
