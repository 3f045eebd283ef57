"""Feedback as the service uses it: notes answers, takes true labels, shows figures as metrics.

Knows no route; `service.feedback.feedback_writer` has the thread that writes.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import structlog

from service.engine.model_loader import LoadedModel
from service.errors import FeedbackUnavailableError, ServiceError, UnknownAnswerError
from service.feedback.feedback_file import FeedbackFile
from service.feedback.feedback_metrics import show_figures
from service.feedback.feedback_writer import AnswerRecord, FeedbackLimits, FeedbackWriter
from service.feedback.label_transaction import LabelledAnswer, LabelTransaction, TrueLabel
from service.feedback.model_versions_with_feedback import find_version, read_figures
from service.feedback.remembered_answer import (
    RememberedAnswer,
    VersionIdentity,
    answered_images,
    promise_of,
)
from service.feedback.version_figures import VersionFigures
from service.observability.log_format import CURRENT_REQUEST_ID
from service.observability.metrics_recorder import Metrics
from service.settings import ServiceSettings
from service.traffic_log.traffic_record import Row, Subject, memory_bytes_of_numbers

Result = TypeVar("Result")
logger = structlog.stdlib.get_logger("service")

_REFRESH_SECONDS = 2.0
_LABEL_BYTES = 256
"""About what one label adds to the file."""
_ELSEWHERE_SECONDS = 0.25
"""An answer of another worker is in the file so soon."""


class Feedback:
    """The feedback of one process."""

    def __init__(
        self, path: Path, limits: FeedbackLimits, metrics: Metrics, *, workers: int = 1
    ) -> None:
        """Touch no file yet; workers: processes that share the file."""
        self._writer = FeedbackWriter(path, limits, metrics)
        self.limits = limits
        self._metrics = metrics
        self._workers = workers
        self._identities: dict[LoadedModel, tuple[VersionIdentity, dict[str, int]]] = {}
        """Of the versions that have answered, each with the numbers of its classes."""
        self.known: dict[LoadedModel, VersionFigures] = {}
        """The figures of active versions, as they were last read."""

    @classmethod
    def of(cls, settings: ServiceSettings, metrics: Metrics) -> Self | None:
        """Return the feedback that the settings describe; None: there is none."""
        if settings.feedback is None:
            return None
        limits = FeedbackLimits(
            settings.feedback_max_bytes, settings.feedback_max_answers, settings.feedback_alarm_rate
        )
        return cls(settings.feedback, limits, metrics, workers=settings.workers)

    def start(self) -> None:
        """Start the thread that writes."""
        self._writer.start()

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()

    def note(
        self,
        model: LoadedModel,
        subject: Subject,
        rows: Callable[[], Sequence[Row]],
        numbers: int,
        *,
        counts_once: bool = False,
    ) -> None:
        """Note the answers to a request; any thread may call it.

        rows: returns the answers, on the writing thread. numbers: how many numbers they hold.
        counts_once: not noted if the latest answer of the version to the request has a label.
        """
        request_id = CURRENT_REQUEST_ID.get()
        if not request_id:
            return
        described = self._describe(model, subject, rows)
        record = AnswerRecord(time.time(), request_id, *described, counts_once)
        self._writer.note(record, memory_bytes_of_numbers(numbers))

    async def add_labels(self, labels: Sequence[TrueLabel]) -> list[LabelledAnswer | ServiceError]:
        """Add true labels of earlier answers; an error stands where its label was not added.

        Raises:
            FeedbackUnavailableError, FeedbackFullError: none was added.
        """
        results = await self._submit_labels(labels)
        unknown = [at for at, each in enumerate(results) if isinstance(each, UnknownAnswerError)]
        if unknown and self._workers > 1:
            await asyncio.sleep(_ELSEWHERE_SECONDS)
            again = await self._submit_labels([labels[at] for at in unknown])
            for at, result in zip(unknown, again, strict=True):
                results[at] = result
        for each in results:
            outcome = "refused" if isinstance(each, ServiceError) else each.outcome
            self._metrics.deferred.increment(self._metrics.feedback_labels.labels(outcome))
        return results

    async def add_images(
        self,
        model: LoadedModel,
        subject: Subject,
        rows: Sequence[Row],
        request_id: str,
        label: str,
        pngs: Sequence[bytes] | None,
    ) -> list[LabelledAnswer]:
        """Remember the answers for N images together with their true label.

        pngs: the images, where they are to be kept.

        Raises:
            FeedbackUnavailableError, FeedbackFullError: nothing was stored.
        """
        identity, content = self._describe(model, subject, lambda: rows)
        kept = [None] * len(rows) if pngs is None else pngs

        def work(change: LabelTransaction, _file: FeedbackFile) -> list[LabelledAnswer]:
            change.remember_once(request_id, identity, content())
            return [
                change.add(TrueLabel(request_id, number, label), png)
                for number, png in enumerate(kept)
            ]

        size = sum(len(each) for each in pngs or ()) + 2 * _LABEL_BYTES * len(rows)
        results = await self._wait(work, size)
        for each in results:
            self._metrics.deferred.increment(self._metrics.feedback_labels.labels(each.outcome))
        return results

    async def figures(self, model: LoadedModel) -> VersionFigures:
        """Return what the labels of a version say now; raises FeedbackUnavailableError."""
        identity = self._identity(model)[0]
        level = self.limits.alarm_rate

        def work(_change: LabelTransaction, file: FeedbackFile) -> VersionFigures:
            row = find_version(file.connection, identity)
            return VersionFigures() if row is None else read_figures(file.connection, row, level)

        return await self._wait(work)

    async def run(self, active: Callable[[], Sequence[LoadedModel]]) -> None:
        """Show the figures of active versions as metrics, again and again, until cancelled."""
        while True:
            models = active()
            with suppress(FeedbackUnavailableError):
                self.known = {model: await self._shown(model) for model in models}
            self._identities = {model: self._identity(model) for model in models}
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _shown(self, model: LoadedModel) -> VersionFigures:
        figures = await self.figures(model)
        show_figures(self._metrics, model.name, model.version, figures)
        before = self.known.get(model, VersionFigures()).broken_promises
        for promise in figures.broken_promises - before:
            logger.warning(
                "promise broken",
                model=model.name,
                version=model.version,
                promise=promise,
                reason=f"true labels show it; see GET /models/{model.name}/feedback and "
                "docs/feedback.md, and end the alarm with python -m service.feedback reset",
            )
        return figures

    async def _submit_labels(
        self, labels: Sequence[TrueLabel]
    ) -> list[LabelledAnswer | ServiceError]:
        return await self._wait(partial(_add_all, labels), _LABEL_BYTES * len(labels))

    async def _wait(
        self, work: Callable[[LabelTransaction, FeedbackFile], Result], content_bytes: int = 0
    ) -> Result:
        return await asyncio.wrap_future(self._writer.submit(work, content_bytes))

    def _describe(
        self, model: LoadedModel, subject: Subject, rows: Callable[[], Sequence[Row]]
    ) -> tuple[VersionIdentity, Callable[[], bytes]]:
        """Return the version that has answered, and what encodes the answer to remember."""
        identity, numbers = self._identity(model)
        promise = promise_of(subject.options, model.calibrator)

        def content() -> bytes:
            return RememberedAnswer(promise, answered_images(rows(), numbers)).to_bytes()

        return identity, content

    def _identity(self, model: LoadedModel) -> tuple[VersionIdentity, dict[str, int]]:
        known = self._identities.get(model)
        if known is None:
            identity = VersionIdentity.of(model.bundle.manifest, model.calibrator)
            numbers = {name: number for number, name in enumerate(identity.class_names)}
            known = self._identities[model] = identity, numbers
        return known


def _add_all(
    labels: Sequence[TrueLabel], change: LabelTransaction, _file: FeedbackFile
) -> list[LabelledAnswer | ServiceError]:
    results: list[LabelledAnswer | ServiceError] = []
    for label in labels:
        try:
            results.append(change.add(label))
        except ServiceError as error:
            results.append(error)
    return results
