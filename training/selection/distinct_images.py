"""Leaves out of a ranking every image whose picture a better one shows already.

Knows no uncertainty; `training.data.duplicates` says which images show one picture.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.duplicates import TooAlikeError, duplicate_groups
from training.data.image_inspection import Inspected

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]


def first_distinct(ranking: Rows, images: Sequence[Inspected], count: int) -> Rows:
    """Return the best images of a ranking that show different pictures, int64 [at most count].

    Only as much of the ranking is compared as is needed, since each image is compared with each.

    Args:
        ranking: rows of `images`, best first.
        images: by which they are compared.
        count: how many are wanted.
    """
    ranking = _without_equal_files(ranking, images)
    size = count
    while True:
        best = ranking[:size]
        distinct = best[_first_of_each_picture([images[row] for row in best.tolist()])]
        if len(distinct) >= count or size >= len(ranking):
            return distinct[:count]
        size *= 2


def _without_equal_files(ranking: Rows, images: Sequence[Inspected]) -> Rows:
    first = {images[row].digest: row for row in reversed(ranking.tolist())}
    kept = set(first.values())
    return np.array([row for row in ranking.tolist() if row in kept], np.int64)


def _first_of_each_picture(images: Sequence[Inspected]) -> Rows:
    if not images:
        return np.empty(0, np.int64)
    try:
        groups = duplicate_groups(images)
    except TooAlikeError:
        logger.warning(
            "Too many pictures of the pool are alike; only equal files were taken as duplicates."
        )
        groups = duplicate_groups(images, perceptual=False)
    return np.sort(np.unique(groups, return_index=True)[1]).astype(np.int64)
