"""What the routes note of their answers: for the traffic log, for shadows and for feedback."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dropout.sampling_methods import Sampling
from service.api.open_inference_tensors import InferOptions, ModelEndpoint
from service.api.sampling_validation import parse_sampling
from service.api.schemas import UncertaintyQuery
from service.codecs.tensors import Tensor
from service.engine.model_loader import LoadedModel
from service.feedback.feedback_recorder import Feedback
from service.observability.triton_statistics import ModelStatistics
from service.settings import ServiceSettings
from service.shadow.background_comparison import ShadowComparison
from service.traffic_log.traffic_log import TrafficLog
from service.traffic_log.traffic_record import Row, Subject, TrafficOptions

PREDICT, UNCERTAINTY = "/predict", "/uncertainty"
INFER, ROWS = "/v2/models/{name}/infer", "/v1/models/{name}:predict"
NATIVE_ROUTES, PROTOCOL_ROUTES = (PREDICT, UNCERTAINTY), (INFER, ROWS)
_PROBABILITIES = ("probabilities", "mean_probabilities")


class AnswerNotes:
    """Where the routes note their answers: traffic log, shadow versions and feedback."""

    def __init__(
        self, traffic: TrafficLog | None, shadows: ShadowComparison, feedback: Feedback | None
    ) -> None:
        """Note in all; traffic: None: there is no log. feedback: None: no true labels are taken."""
        self._traffic = traffic
        self._shadows = shadows
        self._feedback = feedback

    def wanted(self, model: LoadedModel) -> bool:
        """Return whether anything takes note of the answers of a version."""
        return self._traffic is not None or self._feedback is not None or self._shadows.wants(model)

    def noting(
        self,
        model: LoadedModel,
        subject: Subject,
        rows: Callable[[], list[Any]],
        numbers: int,
        *,
        counts_once: bool = False,
    ) -> Callable[[], list[Any]]:
        """Return a function that builds the answers by `rows`, and notes them as `_note` does.

        counts_once: the id of the request is that of an image, which may be answered again.
        """
        for_shadow = self._shadows.wants(model)

        def build() -> list[Any]:
            built = rows()
            self._note(
                *(model, subject, lambda: built, numbers),
                for_shadow=for_shadow,
                counts_once=counts_once,
            )
            return built

        return build

    def note_outputs(
        self,
        route: str,
        endpoint: ModelEndpoint,
        images: NDArray[np.float32],
        options: InferOptions | None,
        outputs: Sequence[Tensor],
    ) -> None:
        """Note the output tensors of N images, float32 [N, C, H, W]."""
        model = endpoint.model
        names = model.bundle.manifest.class_names
        noted = None
        if options is not None:
            noted = TrafficOptions(options.sampling, options.max_risk, options.max_false_alarm)
        self._note(
            model,
            Subject(route, model.name, model.version, images, noted),
            lambda: rows_of_outputs(outputs, names),
            sum(each.values.size for each in outputs),
            for_shadow=self._shadows.wants(model),
        )

    def _note(
        self,
        model: LoadedModel,
        subject: Subject,
        rows: Callable[[], Sequence[Row]],
        numbers: int,
        *,
        for_shadow: bool,
        counts_once: bool = False,
    ) -> None:
        if self._traffic is not None:
            self._traffic.note(subject, rows, numbers)
        if self._feedback is not None:
            self._feedback.note(model, subject, rows, numbers, counts_once=counts_once)
        if for_shadow:
            self._shadows.note(subject, rows, numbers)


def options_of_query(query: UncertaintyQuery, sampling: Sampling) -> TrafficOptions:
    """Return the options of a request to POST /uncertainty."""
    return TrafficOptions(
        sampling, query.max_risk, query.max_false_alarm, query.coverage, query.sets
    )


def default_subject(
    settings: ServiceSettings, model: LoadedModel, images: NDArray[np.float32]
) -> Subject:
    """Return what a request without parameters would ask about images, float32 [N, C, H, W].

    It is answered as POST /uncertainty does, or POST /predict where the first is off.
    """
    if not settings.uncertainty:
        return Subject(PREDICT, model.name, model.version, images, None)
    query = UncertaintyQuery.model_validate({})
    options = options_of_query(query, parse_sampling(query, settings))
    return Subject(UNCERTAINTY, model.name, model.version, images, options)


def default_statistics(settings: ServiceSettings, model: LoadedModel) -> ModelStatistics:
    """Return the statistics in which the answer to a `default_subject` counts."""
    batcher = model.batcher
    return batcher.sampled_statistics if settings.uncertainty else batcher.statistics


def rows_of_outputs(outputs: Sequence[Tensor], class_names: tuple[str, ...]) -> list[Row]:
    """Return the outputs of each image with the names that POST /uncertainty gives them."""
    tensors = {each.name: each.values for each in outputs}
    labels = tensors.pop("label")
    probabilities = next(tensors[name] for name in _PROBABILITIES if name in tensors)
    of_image = [(name, values) for name, values in tensors.items() if values.ndim == 1]
    rows: list[Row] = []
    for number, by_class in enumerate(probabilities):
        values = list(by_class)  # NumPy's numbers, which are written with the digits of float32
        row = {
            "label": labels[number].decode(),
            "confidence": max(values),
            "probabilities": dict(zip(class_names, values, strict=True)),
        }
        for name, column in of_image:
            row[name] = column[number]
        if "abstain_because" in row:
            row["abstain_because"] = row["abstain_because"].decode() or None
        rows.append(row)
    return rows
