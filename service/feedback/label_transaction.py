"""One change of a feedback file: answers are remembered, and true labels are added to them.

The counts and tests of the versions change in the same transaction as the labels, once for all of
them. Knows no thread.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from model.uncertainty.prediction_sets import SetKind
from service.errors import FeedbackUnavailableError, InvalidLabelError, UnknownAnswerError
from service.feedback.model_versions_with_feedback import (
    add_counts,
    coverage_test,
    parse_class_names,
    risk_test,
    store_test,
    version_row,
)
from service.feedback.remembered_answer import (
    AnsweredImage,
    Promise,
    RememberedAnswer,
    VersionIdentity,
)
from service.feedback.version_figures import LabelCounts, bin_of

Outcome = Literal["added", "unchanged", "replaced"]

_COMPARED_ANSWERS = 64
"""Among so many that were written last, the latest answer to a request is looked for: a client may
give all of its requests one id."""


class TrueLabel(NamedTuple):
    """The true label of one image of an earlier answer."""

    request_id: str
    image: int
    """Its number in the request, from 0."""
    label: str


class LabelledAnswer(NamedTuple):
    """What became of a true label."""

    outcome: Outcome
    model: str
    version: str
    predicted: str
    correct: bool


class _Answer(NamedTuple):
    row: int
    version: int
    model: str
    version_name: str
    class_names: tuple[str, ...]
    validation_images: int
    content: RememberedAnswer


class LabelTransaction:
    """Changes a file within a transaction of its caller; `finish` must be the last call."""

    def __init__(
        self, connection: sqlite3.Connection, level: float, may_be_lost: Callable[[str], bool]
    ) -> None:
        """Change nothing yet.

        level: the false-alarm rate of all tests of a version together.
        may_be_lost: whether the answer to a request of that id may not have been stored.
        """
        self._connection = connection
        self._level = level
        self._may_be_lost = may_be_lost
        self._time = time.time()
        self._rows: dict[VersionIdentity, int] = {}
        self._counts: dict[tuple[int, int], LabelCounts] = defaultdict(LabelCounts)
        """Changes of the counts, by version and bin."""
        self._risks: dict[int, list[tuple[bool, float]]] = defaultdict(list)
        """Of each version, whether labels were wrong, and the risk that was promised."""
        self._misses: dict[tuple[int, int, SetKind, float], list[bool]] = defaultdict(list)
        """By version, validation images, kind of sets and coverage: whether sets missed."""

    def remember(
        self, request_id: str, version: VersionIdentity, content: bytes, moment: float
    ) -> None:
        """Remember the answer to a request.

        content: of `RememberedAnswer.to_bytes`. moment: seconds since 1970.
        """
        self._insert(request_id, self._row(version), content, moment)

    def remember_once(self, request_id: str, version: VersionIdentity, content: bytes) -> None:
        """Remember an answer unless the latest one to the request is the very same."""
        row = self._row(version)
        latest = self._connection.execute(
            "SELECT version, content FROM answers WHERE id = ?", (self._latest(request_id),)
        ).fetchone()
        if latest != (row, content):
            self._insert(request_id, row, content, self._time)

    def has_label(self, request_id: str, version: VersionIdentity) -> bool:
        """Return whether the latest answer to a request is of a version and has a label."""
        latest = self._connection.execute(
            "SELECT version, EXISTS (SELECT 1 FROM labels WHERE labels.answer = answers.id) "
            "FROM answers WHERE id = ?",
            (self._latest(request_id),),
        ).fetchone()
        return bool(latest == (self._row(version), 1))

    def add(self, true: TrueLabel, png: bytes | None = None) -> LabelledAnswer:
        """Add the true label of an image, or replace the one that it has.

        png: the image, where it is to be kept.

        Raises:
            UnknownAnswerError: no answer to the request is remembered.
            FeedbackUnavailableError: so it is, and perhaps because it could not be stored.
            InvalidLabelError: the answer has no such image, or the version no such class.
        """
        answer = self._find(true.request_id)
        image, truth = self._check(true, answer)
        outcome = self._store(answer, true.image, image, truth)
        if png is not None:
            self._connection.execute(
                "INSERT OR REPLACE INTO pictures SELECT id, ? FROM labels "
                "WHERE answer = ? AND image = ?",
                (png, answer.row, true.image),
            )
        predicted = answer.class_names[image.label]
        is_correct = image.label == truth
        return LabelledAnswer(outcome, answer.model, answer.version_name, predicted, is_correct)

    def finish(self) -> None:
        """Write counts and tests."""
        for (version, bin_number), counts in self._counts.items():
            add_counts(self._connection, version, bin_number, counts)
        for version, events in self._risks.items():
            test = risk_test(self._connection, version, self._level)
            misses, risks = zip(*events, strict=True)
            test.observe_risk(np.array(misses), np.array(risks), self._times(len(events)))
            store_test(self._connection, version, test)
        for (version, images, sets, coverage), missed in self._misses.items():
            found = coverage_test(self._connection, version, sets, coverage, self._level)
            if found is not None:
                number, test = found
                test.observe_coverage(np.array(missed), coverage, images, self._times(len(missed)))
                store_test(self._connection, version, test, number, sets, coverage)

    def _row(self, version: VersionIdentity) -> int:
        if version not in self._rows:
            self._rows[version] = version_row(self._connection, version)
        return self._rows[version]

    def _insert(self, request_id: str, version: int, content: bytes, moment: float) -> None:
        self._connection.execute(
            "INSERT INTO answers (request_id, version, time, content) VALUES (?, ?, ?, ?)",
            (request_id, version, moment, content),
        )

    def _latest(self, request_id: str) -> int | None:
        """Return the row of the latest answer to a request; None: there is none.

        Another worker may have written an earlier answer after it.
        """
        found = self._connection.execute(
            "SELECT id FROM (SELECT id, time FROM answers WHERE request_id = ? "
            "ORDER BY id DESC LIMIT ?) ORDER BY time DESC, id DESC LIMIT 1",
            (request_id, _COMPARED_ANSWERS),
        ).fetchone()
        return None if found is None else int(found[0])

    def _find(self, request_id: str) -> _Answer:
        row = self._connection.execute(
            "SELECT answers.id, versions.id, versions.model, versions.version, class_names, "
            "validation_images, content FROM answers "
            "JOIN versions ON versions.id = answers.version "
            "WHERE answers.id = ?",
            (self._latest(request_id),),
        ).fetchone()
        if row is None and self._may_be_lost(request_id):
            raise FeedbackUnavailableError(
                f"The answer to a request {request_id[:128]!r} may be lost, since the file of "
                "feedback could not be written, or not fast enough; send the image with its label "
                "when it can be again."
            )
        if row is None:
            raise UnknownAnswerError(
                f"No answer to a request {request_id[:128]!r} is remembered; send its X-Request-ID "
                "sooner, or the image with its label."
            )
        number, version, model, name, classes, images, content = row
        answer = RememberedAnswer.from_bytes(content)
        return _Answer(number, version, model, name, parse_class_names(classes), images, answer)

    def _check(self, true: TrueLabel, answer: _Answer) -> tuple[AnsweredImage, int]:
        """Return the image, and the number of its true class."""
        images = answer.content.images
        if true.image >= len(images):
            raise InvalidLabelError(
                f"The answer to {true.request_id!r} has {len(images)} images, from number 0, but "
                f"got number {true.image}."
            )
        return images[true.image], class_number(true.label, answer.class_names, answer.model)

    def _store(self, answer: _Answer, number: int, image: AnsweredImage, truth: int) -> Outcome:
        """Store a label, and take note of what it changes."""
        change = self._counts[answer.version, bin_of(image.confidence)]
        earlier = self._connection.execute(
            "SELECT truth FROM labels WHERE answer = ? AND image = ?", (answer.row, number)
        ).fetchone()
        if earlier == (truth,):
            return "unchanged"
        if earlier is not None:
            self._connection.execute(
                "UPDATE labels SET truth = ?, time = ? WHERE answer = ? AND image = ?",
                (truth, self._time, answer.row, number),
            )
            change.add(LabelCounts.of(image, earlier[0]), -1)
            change.add(LabelCounts.of(image, truth))
            return "replaced"
        self._connection.execute(
            "INSERT INTO labels (answer, image, version, time, truth, label) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (answer.row, number, answer.version, self._time, truth, image.label),
        )
        change.add(LabelCounts.of(image, truth))
        self._bet(answer, image, truth)
        return "added"

    def _bet(self, answer: _Answer, image: AnsweredImage, truth: int) -> None:
        """Note for the tests whether the answer kept what it promised."""
        promise: Promise = answer.content.promise
        if promise.max_risk is not None and image.abstained is False:
            self._risks[answer.version].append((image.label != truth, promise.max_risk))
        members = image.prediction_set
        if promise.coverage is not None and promise.sets is not None and members is not None:
            subject = answer.version, answer.validation_images, promise.sets, promise.coverage
            self._misses[subject].append(truth not in members)

    def _times(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.full(count, self._time)


def class_number(label: str, class_names: Sequence[str], model: str) -> int:
    """Return the number of a class.

    Raises:
        InvalidLabelError: the model has no class of that name.
    """
    try:
        return class_names.index(label)
    except ValueError:
        raise InvalidLabelError(
            f"The model {model!r} has no class {label[:100]!r}; GET /models lists its classes."
        ) from None


def forget_oldest_answers(connection: sqlite3.Connection, kept: int) -> None:
    """Forget all but about the latest `kept` answers; their labels stay."""
    connection.execute("DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - ?", (kept,))
