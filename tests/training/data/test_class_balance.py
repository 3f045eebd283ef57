import numpy as np
import pytest

from training.data.class_balance import class_weights, warn_of_unequal_classes

LABELS = np.repeat([0, 1, 2], [60, 30, 3])
NAMES = ("ants", "bees", "wasps")


def test_balanced_weights_give_each_class_the_same_sum() -> None:
    weights = class_weights(LABELS, 3, "balanced")
    assert weights is not None
    sums = np.bincount(LABELS, weights=weights[LABELS])
    np.testing.assert_allclose(sums, len(LABELS) / 3, rtol=1e-6)
    assert class_weights(LABELS, 3, "none") is None


def test_very_unequal_classes_are_named_with_a_remedy() -> None:
    sentence = warn_of_unequal_classes(LABELS, NAMES, "none")
    assert sentence is not None
    assert "3 training images of 'wasps', 60 of 'ants'" in sentence
    assert "--class-weights balanced" in sentence
    assert "--class-weights" not in (warn_of_unequal_classes(LABELS, NAMES, "balanced") or "")


@pytest.mark.parametrize("largest", [3, 29])
def test_classes_that_differ_little_are_not_worth_a_warning(largest: int) -> None:
    assert warn_of_unequal_classes(np.repeat([0, 1], [largest, 3]), NAMES[:2], "none") is None
