"""Says how unequal the classes of a training split are, and how much each image counts.

Knows no network and no loss.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.config import ClassWeights
from training.data.excluded_files import counted, printable

VERY_UNEQUAL = 10
"""Ratio of the largest to the smallest class from which on the user is warned."""


def class_weights(
    labels: NDArray[np.int64], classes: int, kind: ClassWeights
) -> NDArray[np.float32] | None:
    """Return the weight of each class in the loss, float32 [K]; None where all count the same.

    `balanced` gives each class the same weight in all, N / (K * N_k) to each of its N_k images
    (King & Zeng 2001).

    Args:
        labels: of the training images, [N]; each class has at least one.
        classes: their number K.
        kind: of the weights.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * counts)).astype(np.float32)


def warn_of_unequal_classes(
    labels: NDArray[np.int64], class_names: Sequence[str], kind: ClassWeights
) -> str | None:
    """Return one sentence on classes of very unequal size, None if they are not."""
    counts = np.bincount(labels, minlength=len(class_names))
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] < VERY_UNEQUAL * counts[smallest]:
        return None
    remedy = (
        "look at its recall in the report, add images, or try --class-weights balanced"
        if kind == "none"
        else "look at its precision and its recall in the report, or add images"
    )
    return (
        f"The classes are very unequal: {counted(int(counts[smallest]), 'training image')} of "
        f"{printable(class_names[smallest])!r}, {int(counts[largest]):,} of "
        f"{printable(class_names[largest])!r}; {remedy}."
    )
