"""Folds for cross-fitting."""

import numpy as np

from training.data.folds import stratified_folds


def test_every_class_is_in_every_fold_in_equal_shares() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 7])
    folds = stratified_folds(labels, np.arange(77), 5, seed=0)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
        assert counts.min() > 0


def test_small_class_lowers_the_number_of_folds() -> None:
    labels = np.repeat([0, 1], [50, 3])
    assert stratified_folds(labels, np.arange(53), 5, seed=0).max() == 2


def test_same_seed_draws_the_same_folds() -> None:
    labels = np.repeat([0, 1], 20)
    first, second, other = (stratified_folds(labels, np.arange(40), 5, seed) for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()


def test_copies_of_one_picture_are_in_one_fold() -> None:
    labels = np.repeat([0, 1], 30)
    groups = np.arange(60) // 3
    folds = stratified_folds(labels, groups, 5, seed=0)
    for group in range(20):
        assert len(set(folds[groups == group])) == 1
    assert set(folds[labels == 0]) == set(folds[labels == 1]) == set(range(5))
