"""Outputs in another order than their names are found, and nothing else is taken for that."""

import numpy as np
import pytest

from training.adoption.class_order import find_order

RANDOM = np.random.default_rng(0)


def predictions(classes: int, images: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and predictions that are right with a probability and else drawn."""
    labels = RANDOM.integers(0, classes, images)
    wrong = RANDOM.random(images) >= accuracy
    return labels, np.where(wrong, RANDOM.integers(0, classes, images), labels)


@pytest.mark.parametrize(("classes", "images"), [(2, 24), (10, 100), (40, 400)])
def test_any_other_order_is_found(classes: int, images: int) -> None:
    labels, predicted = predictions(classes, images, 0.95)
    order = np.roll(np.arange(classes), 1)
    found = find_order(order[predicted], labels, classes)
    assert found is not None
    assert found.before < 0.2
    assert found.after > 0.8
    assert (order[found.classes] == found.outputs).mean() > 0.9


def test_two_swapped_classes_of_ten_are_found() -> None:
    labels, predicted = predictions(10, 200, 0.97)
    order = np.array([1, 0, *range(2, 10)])
    found = find_order(order[predicted], labels, 10)
    assert found is not None
    assert found.outputs.tolist() == order.tolist()


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("classes", "images"), [(2, 20), (2, 256), (10, 100), (1000, 256)])
def test_no_order_is_found_where_the_network_is_bad_or_right(
    classes: int, images: int, accuracy: float
) -> None:
    labels, predicted = predictions(classes, images, accuracy)
    assert find_order(predicted, labels, classes) is None


def test_class_that_is_taken_for_another_is_no_order() -> None:
    """Both classes are answered with one output."""
    labels, predicted = predictions(4, 200, 1.0)
    assert find_order(np.where(predicted == 3, 2, predicted), labels, 4) is None


def test_some_classes_of_many_outputs_are_judged_alone() -> None:
    labels, predicted = predictions(2, 60, 1.0)
    assert find_order(predicted + 500, labels + 500, 1000) is None
    swapped = find_order(501 - predicted, labels + 500, 1000)
    assert swapped is not None
    assert (swapped.classes.tolist(), swapped.outputs.tolist()) == ([500, 501], [501, 500])
