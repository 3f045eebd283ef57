import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from training.evaluation.metrics import (
    classification_metrics,
    confusion_counts,
    expected_calibration_error,
    per_class_metrics,
)


def two_classes(confidence: float, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.tile([confidence, 1 - confidence], (count, 1))


@pytest.mark.parametrize(
    ("confidence", "right", "ece"),
    [(0.9, 9, 0.0), (0.9, 5, 0.4), (0.7, 10, 0.3), (0.55, 0, 0.55)],
)
def test_ece_of_one_bin_is_the_gap_between_accuracy_and_confidence(
    confidence: float, right: int, ece: float
) -> None:
    labels = np.array([0] * right + [1] * (10 - right))
    measured = expected_calibration_error(two_classes(confidence, 10), labels)
    assert measured == pytest.approx(ece, abs=1e-6)


def test_ece_weighs_the_fifteen_bins_by_their_size() -> None:
    # 30 images at 0.95, all right (gap 0.05); 10 at 0.65, half right (gap 0.15).
    probabilities = np.concatenate([two_classes(0.95, 30), two_classes(0.65, 10)])
    labels = np.array([0] * 30 + [0, 1] * 5)
    expected = (30 * 0.05 + 10 * 0.15) / 40
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_ece_puts_confidence_one_into_the_last_bin() -> None:
    probabilities = np.array([[1.0, 0.0], [0.95, 0.05]])
    measured = expected_calibration_error(probabilities, np.array([1, 0]))
    assert measured == pytest.approx((1.95 - 1) / 2)


def test_ece_equals_torchmetrics_away_from_the_bin_edges() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 500)
    labels = generator.integers(0, 4, 500)
    reference = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=15
    )
    measured = expected_calibration_error(probabilities, labels)
    assert measured == pytest.approx(float(reference), abs=1e-6)


def test_ece_has_fifteen_bins_of_equal_width() -> None:
    # 0.61 and 0.66 share the bin 9/15..10/15, where their gaps cancel; 0.67 is in the next.
    together = np.concatenate([two_classes(0.61, 1), two_classes(0.65, 1)])
    assert expected_calibration_error(together, np.array([0, 1])) == pytest.approx(0.13, abs=1e-6)
    apart = np.concatenate([two_classes(0.61, 1), two_classes(0.68, 1)])
    assert expected_calibration_error(apart, np.array([0, 1])) == pytest.approx(
        (0.39 + 0.68) / 2, abs=1e-6
    )


def test_classification_metrics_of_a_known_case() -> None:
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    labels = np.array([0, 0, 1])
    result = classification_metrics(probabilities, labels)
    assert result["accuracy"] == pytest.approx(1 / 3)  # a tie goes to the first class
    assert result["nll"] == pytest.approx(-np.log([0.8, 0.4, 0.5]).mean())
    assert result["brier"] == pytest.approx((2 * 0.04 + 2 * 0.36 + 2 * 0.25) / 3)
    assert "top5_accuracy" not in result


def test_classification_metrics_include_top5_accuracy_above_five_classes() -> None:
    probabilities = np.tile([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05], (2, 1))
    assert classification_metrics(probabilities, np.array([4, 5]))["top5_accuracy"] == 0.5


def test_classification_metrics_of_a_certain_mistake_are_finite() -> None:
    result = classification_metrics(np.array([[1.0, 0.0]]), np.array([1]))
    assert np.isfinite(result["nll"])
    assert result["nll"] > 30
    assert result["brier"] == 2


def test_per_class_metrics_and_confusion_counts_of_a_known_case() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0]])
    labels = np.array([0, 1, 1])
    classes = per_class_metrics(probabilities, labels, ["a", "b", "c"])
    assert classes["a"] == {"precision": 0.5, "recall": 1.0, "images": 1}
    assert classes["b"] == {"precision": 1.0, "recall": 0.5, "images": 2}
    assert classes["c"] == {"precision": 0.0, "recall": 0.0, "images": 0}
    assert confusion_counts(probabilities, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
