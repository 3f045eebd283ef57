from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.uncertainty.summary import summarise
from training.evaluation import selective as trust
from training.evaluation.metrics import Answers, Evaluation

Floats = NDArray[np.float64]


def areas(confidence: Floats, right: NDArray[np.bool_]) -> tuple[float, float]:
    answered, risks = trust.risk_coverage(confidence, right)
    return float(risks.mean()), float((answered * risks).mean())


def test_the_risk_of_a_known_case() -> None:
    right = np.array([True, False, True, False])
    answered, risks = trust.risk_coverage(np.array([0.9, 0.8, 0.7, 0.1]), right)
    np.testing.assert_allclose(answered, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risks, [0, 1 / 2, 1 / 3, 1 / 2])


def test_equally_confident_images_count_alike_in_any_order() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5])
    orders = [[True, True, True, False], [True, False, True, True]]
    first, second = (trust.risk_coverage(confidence, np.array(order))[1] for order in orders)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(first, [0, 1 / 6, 2 / 9, 1 / 4])


def test_augrc_is_what_its_paper_says_of_the_roc_curve() -> None:
    """Traub et al. 2024: (1 - AUROC) acc (1 - acc) + (1 - acc)² / 2, but for the finite steps."""
    generator = np.random.default_rng(0)
    confidence = generator.random(2_000)
    right = generator.random(2_000) < 0.5 + 0.5 * confidence
    accuracy = right.mean()
    expected = (1 - roc_auc_score(right, confidence)) * accuracy * (1 - accuracy)
    expected += (1 - accuracy) ** 2 / 2
    assert areas(confidence, right)[1] == pytest.approx(expected, abs=1 / 2_000)


def test_the_best_order_has_the_least_area() -> None:
    right = np.arange(100) < 90
    best, worst = (areas(values, right) for values in (-np.arange(100.0), np.arange(100.0)))
    assert best < worst


@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_cover_what_was_asked_for_on_average(coverage: float) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(5, 0.5), 2_000)
    labels = (probabilities.cumsum(axis=1) > generator.random((2_000, 1))).argmax(axis=1)
    covered, sizes = trust.halved(probabilities, labels, coverage)
    # The share of 1,000 images after fitting on 1,000 has a deviation of 0.014 or less.
    assert covered.mean() == pytest.approx(coverage, abs=0.02)
    assert covered.std() < 0.03
    assert 0.5 < sizes.mean() < 5


def test_a_half_that_is_too_small_takes_every_class() -> None:
    covered, sizes = trust.halved(np.full((6, 4), 0.25), np.zeros(6, np.int64), 0.9)
    assert set(covered) == {1.0}
    assert set(sizes) == {4.0}


def test_strangers_that_score_higher_are_told_apart() -> None:
    known = np.linspace(0, 1, 101)
    assert trust.ood_metrics(known, known + 2) == (1.0, 0.0)
    assert trust.ood_metrics(known, known) == pytest.approx((0.5, 0.95), abs=0.01)
    auroc, false = trust.ood_metrics(known, known - 2)
    assert (auroc, false) == (0.0, 1.0)


def test_fpr95_is_the_share_of_strangers_below_the_threshold_of_95_percent() -> None:
    known, strange = np.arange(100.0), np.array([10.0, 94.0, 94.5, 200.0])
    # 95 of 100 known images score at most 94; so do two strangers.
    assert trust.ood_metrics(known, strange)[1] == 0.5


def test_doubtful_answers_score_as_strangers(evaluation: Evaluation) -> None:
    """By every score: the samples of the doubtful ones are undecided, and of different minds."""
    sure, doubtful = (answers(np.array(shares)) for shares in ([[0.98, 0.99]], [[0.55, 0.95]]))
    told = trust.strangers(sure, doubtful)
    assert set(told) == {"maximum probability", "predictive entropy", "mutual information"}
    assert all(each == {"auroc": 1.0, "fpr95": 0.0} for each in told.values())
    assert set(trust.ood_scores(typical(evaluation.answers))) == {*told, "typicality"}


def answers(shares: Floats) -> Answers:
    """Two samples of ten images, which give the first of two classes these probabilities."""
    samples = np.stack([shares, 1 - shares], axis=-1).repeat(10, axis=0)
    uncertainty = summarise(np.log(samples).astype(np.float32))
    return Answers(uncertainty.mean_probabilities, uncertainty)


def typical(given: Answers) -> Answers:
    everywhere = np.full(len(given.probabilities), 0.5)
    return replace(given, uncertainty=replace(given.uncertainty, typicality=everywhere))


def test_halves_of_a_few_images_are_not_measured() -> None:
    assert trust.prediction_sets(np.full((19, 2), 0.5), np.zeros(19, np.int64)) is None
    assert trust.prediction_sets(np.full((20, 2), 0.5), np.zeros(20, np.int64)) is not None


def test_an_uncalibrated_bundle_has_no_selection(evaluation: Evaluation) -> None:
    measured = trust.measure(evaluation, None)
    assert measured["selection"] is None
    assert 0 < measured["augrc"] < measured["aurc"] < 1
    assert measured["prediction_sets"]["covered_least"] <= measured["prediction_sets"]["covered"]
