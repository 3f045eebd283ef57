"""Finds images whose label is possibly wrong, by predictions of networks that did not see them.

The most confident mistakes, ranked by their margin (Northcutt, Jiang & Chuang 2021). Knows no
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 50
MIN_MARGIN = 0.5
"""Least difference of the probabilities of the predicted class and of the label."""


@dataclass(frozen=True)
class LabelCandidate:
    """An image whose label is possibly wrong."""

    row: int
    """Of the image among those that were looked at."""
    label: int
    """The class that it is in."""
    predicted: int
    """The class that it is predicted to be in."""
    label_probability: float
    predicted_probability: float


def find_label_candidates(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], limit: int = MAX_CANDIDATES
) -> list[LabelCandidate]:
    """Return the images that are possibly in the wrong class, the surest mistakes first.

    An image is a candidate where another class is more probable than its label, by MIN_MARGIN.

    Args:
        probabilities: [N, K], of networks that were not trained on the image: out of fold.
        labels: [N].
        limit: most candidates that are returned.
    """
    rows = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    given = probabilities[rows, labels]
    margins = probabilities[rows, predicted] - given
    suspicious = np.flatnonzero(margins >= MIN_MARGIN)
    order = suspicious[np.argsort(-margins[suspicious], kind="stable")][:limit]
    return [
        LabelCandidate(
            row=int(row),
            label=int(labels[row]),
            predicted=int(predicted[row]),
            label_probability=float(given[row]),
            predicted_probability=float(probabilities[row, predicted[row]]),
        )
        for row in order
    ]


@dataclass(frozen=True)
class NamedCandidate:
    """A file whose label is possibly wrong, as a person reads it."""

    file: str
    class_name: str
    """The class that it is in."""
    predicted_class: str
    label_probability: float
    predicted_probability: float


def name_candidates(
    candidates: Sequence[LabelCandidate], names: Sequence[str], class_names: Sequence[str]
) -> list[NamedCandidate]:
    """Return the candidates with the names of their files and classes.

    Args:
        candidates: their rows are indices of `names`.
        names: of the files, [N].
        class_names: [K].
    """
    return [
        NamedCandidate(
            file=names[each.row],
            class_name=class_names[each.label],
            predicted_class=class_names[each.predicted],
            label_probability=each.label_probability,
            predicted_probability=each.predicted_probability,
        )
        for each in candidates
    ]
