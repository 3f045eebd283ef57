"""Tells whether a network's outputs are in another order than the names that they were given.

Nothing in a file says which output is which class. Where another order would be right far more
often, also on images that it was not found by, the names are wrong and not the network.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from model.errors import DataError
from model.images.preprocessing import to_float
from training.adoption.input_layout import Preprocessing
from training.adoption.original_network import Original
from training.data.dataset import Dataset
from training.evaluation.accuracy_against_chance import RightAnswers
from training.evaluation.metrics import confusion_counts

logger = logging.getLogger(__name__)

_IMAGES = 256
_LEVEL = 1e-3
"""Chance that an order is taken for a better one where it is none."""
_MAX_NAMES = 20
_SEED = 0

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class BetterOrder:
    """An order of the outputs that fits the labels better than the given one."""

    outputs: Labels
    """[C], the output of each class that has images."""
    classes: Labels
    """[C], these classes."""
    before: float
    """Accuracy in the given order, 0..1."""
    after: float
    """Accuracy in this order, on images that it was not found by."""


def check_class_order(
    original: Original, rules: Sequence[Preprocessing], data: Dataset, names: Path | None
) -> None:
    """Refuse outputs that are clearly in another order; warn if the file of names has that order.

    Args:
        original: the network as it was.
        rules: how pixels may become the network's numbers, the chosen rule first. The others are
            tried only if the network is no better than guessing with it.
        data: at most _IMAGES of its validation images are used.
        names: the file that names the outputs; None: they have the folder's order.

    Raises:
        DataError: the outputs are in another order than the folder's classes.
    """
    rows = np.linspace(0, len(data.validation) - 1, min(_IMAGES, len(data.validation)))
    split = data.validation.take(rows.astype(np.int64))
    images = to_float(split.images)
    for rule in rules:
        probabilities = original.probabilities(images, rule)
        order = find_order(probabilities.argmax(axis=1), split.labels, probabilities.shape[1])
        if order is not None:
            _report(order, data, names)
            return
        counts = confusion_counts(probabilities, split.labels).tolist()
        if RightAnswers.of_counts(counts).beats_guessing:
            return


def find_order(predicted: Labels, labels: Labels, outputs: int) -> BetterOrder | None:
    """Return an order with at most half of the mistakes; None if there is none.

    The order is found on one half of the images and tried on the other, and the reverse (linear
    assignment; McNemar's exact test on the images that only one of the two orders gets right).

    Args:
        predicted: the output with the highest probability, int64 [N].
        labels: the output that the given order names, int64 [N].
        outputs: number of the network's outputs.
    """
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(labels))
    halves = order[::2], order[1::2]
    right = np.zeros(len(labels), np.bool_)
    for fitted, tried in (halves, halves[::-1]):
        found = _assign(predicted[fitted], labels[fitted], outputs)
        right[tried] = [
            found.get(label) == output
            for label, output in zip(labels[tried].tolist(), predicted[tried].tolist(), strict=True)
        ]
    given = predicted == labels
    gained, lost = int((right & ~given).sum()), int((given & ~right).sum())
    if gained + lost == 0 or 2 * (~right).sum() > (~given).sum():
        return None
    if binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue > _LEVEL:
        return None
    whole = _assign(predicted, labels, outputs)
    return BetterOrder(
        outputs=np.array(list(whole.values()), np.int64),
        classes=np.array(list(whole), np.int64),
        before=float(given.mean()),
        after=float(right.mean()),
    )


def _assign(predicted: Labels, labels: Labels, outputs: int) -> dict[int, int]:
    """Return the output for each class that has images, so that most images are right."""
    classes = np.unique(labels)
    counts = np.zeros((len(classes), outputs), np.int64)
    np.add.at(counts, (np.searchsorted(classes, labels), predicted), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return dict(zip(classes[rows].tolist(), columns.tolist(), strict=True))


def _report(order: BetterOrder, data: Dataset, names: Path | None) -> None:
    class_names = data.class_names
    by_output = sorted(zip(order.outputs.tolist(), order.classes.tolist(), strict=True))
    listed = ", ".join(
        f"{output}: {class_names[label]}" for output, label in by_output[:_MAX_NAMES]
    )
    more = ", …" if len(by_output) > _MAX_NAMES else ""
    measured = (
        f"{order.before:.1%} of the validation images are right so, and {order.after:.1%} with the "
        f"outputs ({listed}{more})"
    )
    if names is not None:
        logger.warning(
            "Warning: %s seems to name the outputs in another order than the network's: %s.",
            *(names, measured),
        )
        return
    raise DataError(
        f"The network's outputs are not in the order of the folder's classes: {measured}, counted "
        "from 0. Write the name of each output into a file, one a line in that order, and name it "
        "with --classes."
    )
