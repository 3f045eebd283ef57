"""Divides images into folds, each with the same share of every class. Knows no files."""

import numpy as np
from numpy.typing import NDArray


def stratified_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each image, int64 [N], from 0: at most `count`, at least 2.

    Images of one group, such as copies of one picture, are in one fold; a group of several classes
    goes with the class of its first image. There are no more folds than groups of the smallest
    class, so that every class is in each.

    Args:
        labels: [N], at least two groups of each class that there is.
        groups: [N], the number of the group of each image.
        count: of folds.
        seed: of the draw.
    """
    _, leaders, members = np.unique(groups, return_index=True, return_inverse=True)
    return _ungrouped_folds(labels[leaders], count, seed)[members]


def _ungrouped_folds(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.PCG64(seed))
    classes, sizes = np.unique(labels, return_counts=True)
    count = max(2, min(count, int(sizes.min())))
    folds = np.empty(len(labels), np.int64)
    start = 0
    for label in classes:
        rows = generator.permutation(np.flatnonzero(labels == label))
        folds[rows] = (start + np.arange(len(rows))) % count
        start += len(rows)
    return folds
