import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from training.evaluation.label_quality import find_label_candidates, name_candidates


def test_wrong_labels_are_found_by_out_of_fold_predictions() -> None:
    images, truth = load_digits(return_X_y=True)
    images, truth = images[:900] / 16, truth[:900].astype(np.int64)
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(truth), 30, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, 10, len(wrong))) % 10
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probabilities = cross_val_predict(
        KNeighborsClassifier(10), images, labels, cv=folds, method="predict_proba"
    )
    candidates = find_label_candidates(probabilities, labels)
    right = {each.row for each in candidates} & set(wrong.tolist())
    assert len(right) >= 0.95 * len(wrong)
    assert len(right) >= 0.7 * len(candidates)
    assert len(find_label_candidates(probabilities, labels, limit=5)) == 5
    for each in candidates:
        assert each.label == labels[each.row] != each.predicted
        assert each.predicted_probability > each.label_probability
    margins = [each.predicted_probability - each.label_probability for each in candidates]
    assert margins == sorted(margins, reverse=True)


def test_sure_and_right_predictions_make_no_candidate() -> None:
    labels = np.arange(12) % 3
    assert find_label_candidates(np.eye(3)[labels] * 0.9 + 0.1 / 3, labels) == []


def test_candidates_are_named() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1]] * 2 + [[0.2, 0.8]] + [[0.25, 0.75]] * 3)
    candidates = find_label_candidates(probabilities, labels)
    (named,) = name_candidates(candidates, [f"{row}.jpg" for row in range(6)], ("ants", "bees"))
    assert (named.file, named.class_name, named.predicted_class) == ("2.jpg", "ants", "bees")
