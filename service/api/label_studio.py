"""/label-studio/…: an ML backend of Label Studio, for the default model or a named one.

The routes are those that Label Studio 1.23 asks for; it adds their names to the address that it is
given. What it sends of itself, an address and a token, is not used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import structlog
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from model.errors import DropserveError
from service.api.answer_by_another_version import answer_as_noted
from service.api.feedback_fields import describe_results
from service.api.record_answer_for_log_shadow_feedback import (
    AnswerNotes,
    default_statistics,
    default_subject,
)
from service.api.routes import json_response, new_router
from service.codecs.body_to_images import JSON_TYPE, media_type, read_json
from service.codecs.validation_sentence import first_problem
from service.engine.model_loader import LoadedModel
from service.errors import (
    BodyTooLargeError,
    FeedbackDisabledError,
    InvalidRequestError,
    LabelStudioDisabledError,
    UnsupportedMediaTypeError,
)
from service.feedback.feedback_recorder import Feedback
from service.feedback.label_transaction import TrueLabel
from service.http.client_rate_limits import charge_images
from service.http.request_body import BodyReader
from service.keys.scopes import requires
from service.label_studio.choices_controls import ChoicesControl, find_controls
from service.label_studio.pre_annotations import pre_annotation, request_id_of_task, true_label
from service.label_studio.requests_of_label_studio import (
    AnnotationEvent,
    AnyEvent,
    PredictionRequest,
    Setup,
    Task,
)
from service.label_studio.task_images import TaskImages
from service.observability.log_format import CURRENT_REQUEST_ID
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader, client_address
from service.settings import ServiceSettings
from service.traffic_log.traffic_record import Row

_PREFIXES = ("/label-studio", "/label-studio/models/{name}")
_ROUTES = (("GET", "health"), ("POST", "setup"), ("POST", "predict"), ("POST", "webhook"))
_MAX_BODY_BYTES = 2**21
"""About 3,000 tasks; this much JSON is parsed in some 10 ms."""
_MAX_CONTAINERS = 2**16
"""Lists and objects in a body, some 15 of each task; what is empty costs the most for its bytes."""
_MAX_WEBHOOK_BYTES = 2**19
_MAX_WEBHOOK_CONTAINERS = 2**13
"""More than 1,000 annotations with a class each; every part of an annotation is validated."""
_PREDICT_SECONDS = 90.0
"""Label Studio waits for 100 seconds; tasks that are not reached by then get no prediction."""
_SLICES_AT_ONCE = 2
"""Slices of tasks whose images are in memory, of all requests of a worker."""
_FILES_AT_ONCE = 4
"""Files that are fetched or decoded, of all requests of a worker."""

Schema = TypeVar("Schema", bound=BaseModel)
Read = Callable[[Any], Awaitable[bytes]]
Floats = NDArray[np.float32]
logger = structlog.stdlib.get_logger("service")


def router(
    settings: ServiceSettings,
    repository: Repository,
    reader: ImageReader,
    notes: AnswerNotes,
    feedback: Feedback | None,
    images: TaskImages | None,
) -> APIRouter:
    """Build the routes; without `--label-studio` they say how to have them."""
    backend: Any = _Disabled()
    if images is not None:
        backend = _Backend(settings, repository, reader, notes, feedback, images)
    routes = new_router("label studio")
    for prefix in _PREFIXES:
        for method, name in _ROUTES:
            routes.add_api_route(
                f"{prefix}/{name}",
                getattr(backend, name),
                methods=[method],
                include_in_schema=False,  # a protocol of Label Studio's own
            )
    return routes


class _Disabled:
    """The request handlers of a service that is no backend."""

    @requires("predict")
    async def health(self, request: Request) -> Response:
        raise LabelStudioDisabledError(
            "This server is no backend of a Label Studio; start it with --label-studio URL."
        )

    setup = predict = webhook = health


class _Backend:
    """The request handlers of the routes."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        notes: AnswerNotes,
        feedback: Feedback | None,
        images: TaskImages,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._bodies = BodyReader(settings)
        self._notes = notes
        self._feedback = feedback
        self._images = images
        self._turns = asyncio.Semaphore(_FILES_AT_ONCE)
        self._slices = asyncio.Semaphore(_SLICES_AT_ONCE)

    @requires("predict")
    async def health(self, request: Request) -> Response:
        """Say that the model answers."""
        return json_response({"status": "UP", "model_class": self._model(request).name})

    @requires("predict")
    async def setup(self, request: Request) -> Response:
        """Check that the label config asks for classes of the model, and name its version."""
        content = await self._read(request, Setup)
        model = self._model(request)
        find_controls(content.label_config, model.bundle.manifest.class_names)
        return json_response({"model_version": _model_version(model)})

    @requires("predict")
    async def predict(self, request: Request) -> Response:
        """Pre-annotate tasks; one whose image cannot be read gets no prediction, and a sentence."""
        content = await self._read(request, PredictionRequest)
        model = self._model(request)
        controls = find_controls(content.label_config, model.bundle.manifest.class_names)
        charge_images(request.scope, len(content.tasks))
        predictions: list[Any] = []  # an empty list is no prediction
        errors: list[str] = []
        with model, suppress(TimeoutError):
            async with asyncio.timeout(_PREDICT_SECONDS), self._images.reading() as read:
                size = self._settings.max_images
                for start in range(0, len(content.tasks), size):
                    async with self._slices:
                        found = await self._answer(
                            request, model, content.tasks[start : start + size], controls, read
                        )
                    predictions += ([] if isinstance(each, str) else each for each in found)
                    errors += (each for each in found if isinstance(each, str))
        late = len(content.tasks) - len(predictions)
        if late:
            errors.append(f"{late} tasks were not reached in time; retrieve predictions again.")
        if errors:
            logger.warning("tasks not pre-annotated", tasks=len(errors), reason=errors[0])
        return json_response({"results": predictions + [[]] * late, "errors": errors})

    @requires("predict")
    async def webhook(self, request: Request) -> Response:
        """Take the labels of annotations as feedback; other events change nothing."""
        body = await self._json(request, _MAX_WEBHOOK_BYTES, _MAX_WEBHOOK_CONTAINERS)
        event = _parse(body, AnyEvent)
        if not event.is_about_annotations:
            return json_response({"results": [], "ignored": event.action})
        if self._feedback is None:
            raise FeedbackDisabledError
        content = _parse(body, AnnotationEvent)
        model = self._model(request)
        controls = find_controls(content.project.label_config, model.bundle.manifest.class_names)
        labels = [
            TrueLabel(request_id_of_task(each.task, model.name), 0, label)
            for each in content.annotations
            if (label := true_label(each, controls)) is not None
        ]
        results = await self._feedback.add_labels(labels) if labels else []
        return json_response({"results": describe_results(labels, results)})

    async def _answer(
        self,
        request: Request,
        model: LoadedModel,
        tasks: Sequence[Task],
        controls: Sequence[ChoicesControl],
        read: Read,
    ) -> list[dict[str, Any] | str]:
        """Return the prediction of each task, or the sentence why it has none.

        They count as one request for the model.
        """
        client, key = client_address(request), controls[0].data_key
        with default_statistics(self._settings, model).time_request() as timing:
            found = await asyncio.gather(
                *(self._image(task, key, model, client, read) for task in tasks)
            )
            images = [each for each in found if not isinstance(each, str)]
            timing.mark_input_read(len(images))
            rows: Sequence[Row] = ()
            if images:
                subject = default_subject(self._settings, model, np.concatenate(images))
                rows = await answer_as_noted(model, subject)
                timing.mark_predicted()
        answered = iter(zip(images, rows, strict=True))
        return [
            each
            if isinstance(each, str)
            else self._pre_annotation(model, task, controls, *next(answered))
            for task, each in zip(tasks, found, strict=True)
        ]

    async def _image(
        self, task: Task, key: str, model: LoadedModel, client: str, read: Read
    ) -> Floats | str:
        """Return the image of a task, float32 [1, C, H, W], or the sentence why there is none."""
        try:
            async with self._turns:
                file = await read(task.data.get(key))
                return await self._reader.decode([file], model.bundle.manifest.input, client)
        except DropserveError as error:
            return f"Task {task.id}: {error}"

    def _pre_annotation(
        self,
        model: LoadedModel,
        task: Task,
        controls: Sequence[ChoicesControl],
        image: Floats,
        row: Row,
    ) -> dict[str, Any] | str:
        """Note the answer for a task as one to a request of its own, and return its prediction."""
        if self._notes.wanted(model):
            context = CURRENT_REQUEST_ID.set(request_id_of_task(task.id, model.name))
            subject = default_subject(self._settings, model, image)
            count = 3 * len(row["probabilities"])
            self._notes.noting(model, subject, lambda: [row], count, counts_once=True)()
            CURRENT_REQUEST_ID.reset(context)
        label = row["label"]
        missing = f"Task {task.id}: the label config has no choice for the class {label!r}."
        return pre_annotation(row, controls, _model_version(model)) or missing

    def _model(self, request: Request) -> LoadedModel:
        """Return the model in the path, always the same version of it while nothing changes."""
        return self._repository.get(request.path_params.get("name"), None)

    async def _read(self, request: Request, schema: type[Schema]) -> Schema:
        return _parse(await self._json(request), schema)

    async def _json(
        self,
        request: Request,
        max_bytes: int = _MAX_BODY_BYTES,
        max_containers: int = _MAX_CONTAINERS,
    ) -> Any:
        """Return the body, whose type no web page can send without asking."""
        if media_type(request.headers.get("content-type", "")) != JSON_TYPE:
            raise UnsupportedMediaTypeError(f"Label Studio sends {JSON_TYPE}; send that.")
        body = await self._bodies.read_small(request, max_bytes)
        if body.count(b"{") + body.count(b"[") > max_containers:
            raise BodyTooLargeError(
                f"The body has more than {max_containers:,} lists and objects, the most that is "
                "taken here; send less."
            )
        return read_json(body)


def _model_version(model: LoadedModel) -> str:
    """Return what Label Studio files predictions under."""
    return f"{model.name}@{model.version}"


def _parse(content: Any, schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InvalidRequestError(
            f"The body is none that Label Studio sends here: {first_problem(error)}."
        ) from None
