from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.bundle.store import open_bundle
from model.inference.predictor_loading import load_predictor
from model.uncertainty.uncertainty_of_validation_images import COVERAGE
from tests.sample_summaries import summarise
from training.data.dataset import Split
from training.evaluation.metrics import Answers, Evaluation, evaluate
from training.evaluation.selective_prediction import (
    CLASS_COVERAGE_KINDS,
    abstention_metrics,
    auroc_and_fpr95,
    class_coverage_metrics,
    ood_detection_metrics,
    ood_scores,
    prediction_set_metrics,
    risk_coverage,
    selective_metrics,
    split_conformal_trials,
)

Floats = NDArray[np.float64]
DIGITS = tuple("0123456789")


def areas(confidence: Floats, correct: NDArray[np.bool_]) -> tuple[float, float]:
    answered, risks = risk_coverage(confidence, correct)
    return float(risks.mean()), float((answered * risks).mean())


def test_risk_coverage_of_a_known_case() -> None:
    correct = np.array([True, False, True, False])
    answered, risks = risk_coverage(np.array([0.9, 0.8, 0.7, 0.1]), correct)
    np.testing.assert_allclose(answered, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risks, [0, 1 / 2, 1 / 3, 1 / 2])


def test_risk_coverage_ignores_the_order_of_equally_confident_images() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5])
    orders = [[True, True, True, False], [True, False, True, True]]
    first, second = (risk_coverage(confidence, np.array(order))[1] for order in orders)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(first, [0, 1 / 6, 2 / 9, 1 / 4])


def test_augrc_follows_from_auroc_and_accuracy() -> None:
    """AUGRC is (1 - AUROC) acc (1 - acc) + (1 - acc)² / 2, up to 1/N (Traub et al. 2024)."""
    generator = np.random.default_rng(0)
    confidence = generator.random(2_000)
    correct = generator.random(2_000) < 0.5 + 0.5 * confidence
    accuracy = correct.mean()
    expected = (1 - roc_auc_score(correct, confidence)) * accuracy * (1 - accuracy)
    expected += (1 - accuracy) ** 2 / 2
    assert areas(confidence, correct)[1] == pytest.approx(expected, abs=1 / 2_000)


def test_risk_coverage_areas_are_lowest_for_the_best_order() -> None:
    correct = np.arange(100) < 90
    best, worst = (areas(values, correct) for values in (-np.arange(100.0), np.arange(100.0)))
    assert best < worst


@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_split_conformal_trials_reach_the_nominal_coverage(coverage: float) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(5, 0.5), 2_000)
    labels = (probabilities.cumsum(axis=1) > generator.random((2_000, 1))).argmax(axis=1)
    covered, sizes = split_conformal_trials(probabilities, labels, coverage)
    # The share of 1,000 images after fitting on 1,000 has a deviation of 0.014 or less. Adding the
    # likeliest class changes next to nothing, since few sets are empty without it.
    assert covered.mean() == pytest.approx(coverage, abs=0.02)
    assert covered.std() < 0.03
    assert 1 <= sizes.mean() < 5


def test_split_conformal_trials_of_too_few_images_include_every_class() -> None:
    covered, sizes = split_conformal_trials(np.full((6, 4), 0.25), np.zeros(6, np.int64), 0.9)
    assert set(covered) == {1.0}
    assert set(sizes) == {4.0}


def test_auroc_and_fpr95_of_separated_and_equal_scores() -> None:
    known = np.linspace(0, 1, 101)
    assert auroc_and_fpr95(known, known + 2) == (1.0, 0.0)
    assert auroc_and_fpr95(known, known) == pytest.approx((0.5, 0.95), abs=0.01)
    assert auroc_and_fpr95(known, known - 2) == (0.0, 1.0)


def test_fpr95_counts_ood_images_below_the_threshold_of_95_percent() -> None:
    known, ood = np.arange(100.0), np.array([10.0, 94.0, 94.5, 200.0])
    # 95 of 100 in-distribution images score at most 94; so do two of the OOD images.
    assert auroc_and_fpr95(known, ood)[1] == 0.5


def test_ood_detection_metrics_separate_uncertain_predictions(evaluation: Evaluation) -> None:
    """Every score does, since the uncertain samples have high entropy and disagree."""
    certain, uncertain = (
        answers(np.array(probabilities)) for probabilities in ([[0.98, 0.99]], [[0.55, 0.95]])
    )
    metrics = ood_detection_metrics(certain, uncertain)
    assert set(metrics) == {"maximum probability", "predictive entropy", "mutual information"}
    assert all(each == {"auroc": 1.0, "fpr95": 0.0} for each in metrics.values())
    assert set(ood_scores(with_typicality(evaluation.answers))) == {
        *metrics,
        "typicality",
    }


def answers(probabilities: Floats) -> Answers:
    """Return ten images' answers of two samples, with these probabilities of the first class."""
    samples = np.stack([probabilities, 1 - probabilities], axis=-1).repeat(10, axis=0)
    uncertainty = summarise(np.log(samples).astype(np.float32))
    return Answers(uncertainty.mean_probabilities, uncertainty)


def with_typicality(known: Answers) -> Answers:
    typicality = np.full(len(known.probabilities), 0.5)
    return replace(known, uncertainty=replace(known.uncertainty, typicality=typicality))


def test_prediction_set_metrics_need_twenty_images() -> None:
    assert prediction_set_metrics(np.full((19, 2), 0.5), np.zeros(19, np.int64)) is None
    assert prediction_set_metrics(np.full((20, 2), 0.5), np.zeros(20, np.int64)) is not None


def test_selective_metrics_of_an_uncalibrated_bundle_have_no_selection(
    evaluation: Evaluation,
) -> None:
    metrics = selective_metrics(evaluation, None)
    assert metrics["selection"] is None
    assert metrics["class_coverage"] is None
    assert 0 < metrics["augrc"] < metrics["aurc"] < 1
    sets = metrics["prediction_sets"]
    assert sets is not None
    assert sets["covered_least"] <= sets["covered"]


def test_selective_metrics_are_measured_with_the_calibration_of_the_bundle(
    models_folder: Path, held_out: Split
) -> None:
    """Image by image, from the decisions that the service gives."""
    predictor = load_predictor(open_bundle(models_folder / "digits" / "1"))
    calibrator = predictor.calibrator
    assert calibrator is not None
    evaluation = evaluate(predictor, held_out, DIGITS)
    metrics = selective_metrics(evaluation, calibrator)
    uncertainty, labels = evaluation.answers.uncertainty, held_out.labels
    by_kind = metrics["class_coverage"]
    assert by_kind is not None
    assert set(by_kind) == set(CLASS_COVERAGE_KINDS)
    for kind in CLASS_COVERAGE_KINDS:
        decided = calibrator.decide(uncertainty, COVERAGE, kind, None, 0.01)
        found = by_kind[kind]
        inside = [decided.sets[row, label] for row, label in enumerate(labels)]
        assert found["covered"] == pytest.approx(np.mean(inside))
        assert found["size"] == pytest.approx(decided.sets.sum() / len(labels))
        for label, name in enumerate(DIGITS):
            share = np.mean([inside[row] for row in np.flatnonzero(labels == label)])
            assert found["by_class"][name] == pytest.approx(share)
        assert found["by_class"][found["worst_class"]] == min(found["by_class"].values())
        answered = [row for row, reason in enumerate(decided.reasons()) if reason is None]
        selection = metrics["selection"]
        assert selection is not None
        assert selection["answered"] == pytest.approx(len(answered) / len(labels))
        wrong = uncertainty.labels[answered] != labels[answered]
        assert selection["error"] == pytest.approx(wrong.mean())


def test_error_among_no_answers_is_none(models_folder: Path, held_out: Split) -> None:
    predictor = load_predictor(open_bundle(models_folder / "digits" / "1"))
    calibrator = predictor.calibrator
    assert calibrator is not None
    calibrator.parameters = calibrator.parameters.model_copy(update={"max_risk": 1e-6})
    uncertainty = evaluate(predictor, held_out, DIGITS).answers.uncertainty
    metrics = abstention_metrics(uncertainty, uncertainty.labels == held_out.labels, calibrator)
    assert (metrics["answered"], metrics["error"]) == (0, None)


def test_class_coverage_leaves_out_classes_without_images(
    models_folder: Path, held_out: Split
) -> None:
    predictor = load_predictor(open_bundle(models_folder / "digits" / "1"))
    assert predictor.calibrator is not None
    some = held_out.take(np.flatnonzero(held_out.labels < 3))
    evaluation = evaluate(predictor, some, DIGITS)
    metrics = class_coverage_metrics(evaluation, predictor.calibrator, "thr")
    assert set(metrics["by_class"]) == {"0", "1", "2"}
