"""Draws a share of the images of each class at random, images of one picture together.

Knows no files.
"""

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError

Rows = NDArray[np.int64]


def stratified_split(
    labels: Rows, share: float, seed: int, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Draw a random `share` of each class, at least one image and at most all but one.

    Args:
        labels: [N].
        share: of each class to draw, 0..1.
        seed: of the draw.
        groups: [N], the number of each image's group. Images of a group are drawn together, with
            the class of the first of them; so a share is met as closely as they allow. None
            where each image is a group.

    Returns:
        (rest, drawn), both sorted indices of `labels`; together they are 0..N-1.

    Raises:
        DataError: a class has a single image, or images of a single group.
    """
    if groups is None:
        groups = np.arange(len(labels))
    _, first, group_of_row = np.unique(groups, return_index=True, return_inverse=True)
    first_of_row = first[group_of_row]
    sizes = np.bincount(first_of_row, minlength=len(labels))
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        leaders = generator.permutation(np.flatnonzero((labels == label) & (sizes > 0)))
        if len(leaders) < 2:
            raise DataError("A class has a single image; give it at least 3.")
        wanted = max(1, round(share * int(sizes[leaders].sum())))
        drawn.append(_fill(leaders[:-1], sizes, wanted))
    drawn_rows = np.flatnonzero(np.isin(first_of_row, np.concatenate(drawn)))
    return np.setdiff1d(np.arange(len(labels)), drawn_rows), drawn_rows


def _fill(leaders: Rows, sizes: Rows, wanted: int) -> Rows:
    """Return the first groups that fit into `wanted` images, or the smallest if none does."""
    chosen: list[int] = []
    for leader in leaders:
        if sizes[leader] <= wanted:
            chosen.append(int(leader))
            wanted -= sizes[leader]
    return np.array(chosen or [leaders[sizes[leaders].argmin()]], np.int64)
