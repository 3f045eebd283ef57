"""POST /feedback and GET /models/{name}/feedback: true labels, and what they say of a version."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import ValidationError

from model.images.preprocessing import to_float
from service.api import schemas
from service.api.answer_by_another_version import answer_as_noted
from service.api.feedback_fields import describe_figures, describe_results
from service.api.feedback_schemas import (
    LABELS_SCHEMA,
    MAX_LABELS,
    FeedbackQuery,
    FeedbackResults,
    LabelOfAnswer,
    LabelsOfAnswers,
    VersionFeedback,
)
from service.api.record_answer_for_log_shadow_feedback import (
    default_statistics,
    default_subject,
)
from service.api.routes import image_request_body, json_response, new_router, request_id
from service.codecs.body_to_images import JSON_TYPE, media_type, read_json
from service.codecs.validation_sentence import first_problem
from service.errors import (
    EmptyBodyError,
    FeedbackDisabledError,
    InvalidQueryError,
    InvalidRequestError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from service.feedback.feedback_recorder import Feedback
from service.feedback.label_transaction import LabelledAnswer, TrueLabel, class_number
from service.http.request_body import BodyReader
from service.keys.scopes import requires
from service.observability.log_format import CURRENT_REQUEST_ID
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings
from service.traffic_log.image_files import encode_image

_POST, _GET = "/feedback", "/models/{name}/feedback"
_LABELS_EXAMPLE = {"request_id": "b1946ac92492d2347c6235b4d2611184", "image": 0, "label": "7"}
_COLOURS = (1, 3)


def router(
    settings: ServiceSettings,
    repository: Repository,
    reader: ImageReader,
    feedback: Feedback | None,
) -> APIRouter:
    """Build both routes; without `--feedback` they say how to have them."""
    if feedback is None:
        return _disabled_router()
    routes = new_router("feedback")
    labels = _LabelEndpoint(settings, repository, reader, feedback)
    routes.add_api_route(
        _POST,
        labels.post,
        methods=["POST"],
        summary="Say what the true label of an answered image is",
        response_model=FeedbackResults,
        responses=schemas.error_responses(400, 404, 408, 413, 415, 500, 503, 504, 507),
        openapi_extra=_request_body(),
    )

    @routes.get(
        _GET,
        summary="What the true labels of a version say: accuracy, coverage, calibration, alarms",
        response_model=VersionFeedback,
        responses=schemas.error_responses(400, 404, 500, 503),
    )
    @requires("read")
    async def version_feedback(
        name: str, query: Annotated[schemas.VersionQuery, Query()]
    ) -> Response:
        model = repository.get(name, query.version)
        figures = await feedback.figures(model)
        rate = feedback.limits.alarm_rate
        return json_response(describe_figures(model.name, model.version, figures, rate))

    return routes


class _LabelEndpoint:
    """The request handler of POST /feedback."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        feedback: Feedback,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._bodies = BodyReader(settings)
        self._feedback = feedback

    @requires("predict")
    async def post(self, request: Request, query: Annotated[FeedbackQuery, Query()]) -> Response:
        """Add true labels of earlier answers, or classify images and add their label."""
        if query.label is None:
            labels, results = await self._label_answers(request, query)
        else:
            labels, results = await self._label_images(request, query, query.label)
        return json_response({"results": describe_results(labels, results)})

    async def _label_answers(
        self, request: Request, query: FeedbackQuery
    ) -> tuple[list[TrueLabel], Sequence[LabelledAnswer | ServiceError]]:
        """Add the labels in a JSON body; the error of a single one is that of the request."""
        for name in ("model", "version", "keep"):
            if getattr(query, name):
                raise InvalidQueryError(
                    f"Parameter {name!r} is for images; give their true class as label=…, too, or "
                    "leave it out."
                )
        kind = media_type(request.headers.get("content-type", ""))
        if kind != JSON_TYPE:
            raise UnsupportedMediaTypeError(
                f"Labels of earlier answers are sent as {JSON_TYPE}; for images, give their true "
                "class as the query parameter label."
            )
        body = await self._bodies.read_small(request)
        if not body:
            raise EmptyBodyError(
                "The request has no body; send true labels, or images with their class as the "
                "query parameter label."
            )
        content = read_json(body)
        labels = _parse_labels(content)
        results = await self._feedback.add_labels(labels)
        if isinstance(results[0], ServiceError) and not isinstance(content, list):
            raise results[0]
        return labels, results

    async def _label_images(
        self, request: Request, query: FeedbackQuery, label: str
    ) -> tuple[list[TrueLabel], Sequence[LabelledAnswer]]:
        """Answer the images in the body as by default, and label these answers."""
        answer_id = CURRENT_REQUEST_ID.get() or ""  # the response's; what was sent may be malformed
        model = self._repository.get(query.model, query.version, request_id(request))
        class_number(label, model.bundle.manifest.class_names, model.name)
        with model, default_statistics(self._settings, model).time_request() as timing:
            images = await self._reader.read(request, model.bundle.manifest.input)
            timing.mark_input_read(len(images))
            pngs = await asyncio.to_thread(_as_pngs, images) if query.keep else None
            subject = default_subject(self._settings, model, images)
            rows = await answer_as_noted(model, subject)
            timing.mark_predicted()
            results = await self._feedback.add_images(model, subject, rows, answer_id, label, pngs)
        labels = [TrueLabel(answer_id, number, label) for number in range(len(images))]
        return labels, results


def _parse_labels(content: Any) -> list[TrueLabel]:
    """Return the labels of a body, which is one of them or a list; raises InvalidRequestError."""
    if isinstance(content, list) and not 0 < len(content) <= MAX_LABELS:
        raise InvalidRequestError(
            f"The body has {len(content)} true labels; send 1 to {MAX_LABELS} in one request."
        )
    try:
        if isinstance(content, list):
            labels = LabelsOfAnswers.validate_python(content)
        else:
            labels = [LabelOfAnswer.model_validate(content)]
    except ValidationError as error:
        raise InvalidRequestError(
            f"The body has no true labels: {first_problem(error)}; send "
            '{"request_id": "…", "image": 0, "label": "…"} or a list of these.'
        ) from None
    return [TrueLabel(each.request_id, each.image, each.label) for each in labels]


def _as_pngs(images: NDArray[np.float32]) -> list[bytes]:
    """Encode images, float32 [N, C, H, W] in 0..1, as PNG files of 8 bits.

    Raises:
        InvalidQueryError: they are neither grey nor coloured.
    """
    if images.shape[1] not in _COLOURS:
        raise InvalidQueryError(
            f"Parameter 'keep': images of {images.shape[1]} channels are not stored; leave it out."
        )
    pixels = to_float(np.rint(images * np.float32(255)).astype(np.uint8))
    return [encode_image(image)[1] for image in pixels]


def _request_body() -> dict[str, Any]:
    body = image_request_body("Instances")
    body["requestBody"]["content"][JSON_TYPE] = {
        "schema": LABELS_SCHEMA,
        "example": _LABELS_EXAMPLE,
    }
    return body


def _disabled_router() -> APIRouter:
    routes = new_router("feedback")

    @requires("predict")
    async def feedback_disabled(request: Request) -> Response:
        raise FeedbackDisabledError

    @requires("read")
    async def figures_disabled(request: Request, name: str) -> Response:
        return await feedback_disabled(request)

    routes.post(_POST, include_in_schema=False)(feedback_disabled)
    routes.get(_GET, include_in_schema=False)(figures_disabled)
    return routes
