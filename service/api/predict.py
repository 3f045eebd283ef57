"""POST /predict and POST /uncertainty: classify images, deterministically or with MC dropout."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from model.uncertainty.calibration import ABSTENTION_REASONS, Decisions
from model.uncertainty.uncertainty_measures import Uncertainty
from service.api import response_builders, schemas
from service.api.record_answer_for_log_shadow_feedback import (
    PREDICT,
    UNCERTAINTY,
    AnswerNotes,
    options_of_query,
)
from service.api.routes import (
    image_request_body,
    new_router,
    predictions_response,
    request_id,
)
from service.api.sampling_validation import parse_sampling, require_few_sample_probabilities
from service.engine.model_loader import LoadedModel
from service.errors import UncertaintyDisabledError
from service.http.fast_path.fast_path_route import FastPathRoute
from service.keys.scopes import requires
from service.observability.metrics_recorder import Metrics
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings
from service.traffic_log.traffic_record import Subject

_MAX_DEFERRED_IMAGES = 8
"""The metrics of a request with more images are updated at once, not deferred."""
_NUMBERS_PER_CLASS = 3
"""Numbers in a prediction with dropout active, for each class."""
_ERRORS = schemas.error_responses(400, 404, 408, 413, 415, 500, 503, 504)


def router(
    settings: ServiceSettings,
    repository: Repository,
    reader: ImageReader,
    metrics: Metrics,
    notes: AnswerNotes,
) -> APIRouter:
    """Build both routes; where uncertainty is switched off, the second one says so."""
    predictions = _PredictionEndpoints(settings, repository, reader, metrics, notes)
    routes = new_router("predictions")
    add = partial(
        routes.add_api_route,
        methods=["POST"],
        responses=_ERRORS,
        openapi_extra=image_request_body("Instances"),
        route_class_override=FastPathRoute,
    )
    add(
        "/predict",
        predictions.predict,
        summary="Classify images",
        response_model=schemas.Predictions,
    )
    if settings.uncertainty:
        add(
            "/uncertainty",
            predictions.uncertainty,
            summary="Classify images and say how sure each answer is",
            response_model=schemas.UncertainPredictions,
        )
    else:
        routes.post("/uncertainty", include_in_schema=False)(predictions.uncertainty_disabled)
    return routes


class _PredictionEndpoints:
    """The request handlers of the routes."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        metrics: Metrics,
        notes: AnswerNotes,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._metrics = metrics
        self._notes = notes

    @requires("predict")
    async def predict(
        self, request: Request, query: Annotated[schemas.ModelQuery, Query()]
    ) -> Response:
        """Classify images deterministically."""
        model = self._repository.get(query.model, query.version, request_id(request))
        manifest = model.bundle.manifest
        with model, model.batcher.statistics.time_request() as timing:
            images = await self._reader.read(request, manifest.input)
            timing.mark_input_read(len(images))
            prediction = await model.batcher.predict(images)
            timing.mark_predicted()
            content = {"model": manifest.name, "version": model.version}
            rows: Callable[[], list[Any]] = partial(
                response_builders.deterministic_predictions, prediction, manifest.class_names
            )
            count = len(images) * len(manifest.class_names)
            if self._notes.wanted(model):
                subject = Subject(PREDICT, model.name, model.version, images, None)
                rows = self._notes.noting(model, subject, rows, count)
            return await predictions_response(content, rows, count)

    @requires("predict")
    async def uncertainty(
        self, request: Request, query: Annotated[schemas.UncertaintyQuery, Query()]
    ) -> Response:
        """Classify images with dropout active, and describe how uncertain each prediction is."""
        model = self._repository.get(query.model, query.version, request_id(request))
        sampling = parse_sampling(query, self._settings, keep_samples=query.per_sample)
        manifest = model.bundle.manifest
        classes = len(manifest.class_names)
        with model, model.batcher.sampled_statistics.time_request() as timing:
            images = await self._reader.read(request, manifest.input)
            timing.mark_input_read(len(images))
            sample_probabilities = require_few_sample_probabilities(sampling, len(images), classes)
            uncertainty = await model.batcher.uncertainty(images, sampling)
            timing.mark_predicted()
            decisions = None
            if model.calibrator is not None:
                decisions = model.calibrator.decide(
                    uncertainty, query.coverage, query.sets, query.max_risk, query.max_false_alarm
                )
            _record_metrics(uncertainty, decisions, self._metrics, model)
            if model.drift is not None:
                model.drift.observe(uncertainty.typicality, uncertainty.confidences(), sampling)
            content = {
                "model": manifest.name,
                "version": model.version,
                "method": query.method,
                **response_builders.sampling_fields(sampling, decisions),
            }
            rows: Callable[[], list[Any]] = partial(
                response_builders.uncertain_predictions,
                uncertainty,
                manifest.class_names,
                decisions,
                sampling,
            )
            count = _NUMBERS_PER_CLASS * len(images) * classes + sample_probabilities
            if self._notes.wanted(model):
                options = options_of_query(query, sampling)
                route = UNCERTAINTY
                subject = Subject(route, model.name, model.version, images, options)
                rows = self._notes.noting(model, subject, rows, count)
            return await predictions_response(content, rows, count)

    @requires("predict")
    async def uncertainty_disabled(self, request: Request) -> Response:
        """Answer POST /uncertainty where the server runs with --no-uncertainty."""
        raise UncertaintyDisabledError(
            "POST /uncertainty is switched off on this server; use /predict, or start it without "
            "--no-uncertainty."
        )


def _record_metrics(
    uncertainty: Uncertainty, decisions: Decisions | None, metrics: Metrics, model: LoadedModel
) -> None:
    observed = [
        (metrics.predictive_entropy, uncertainty.predictive_entropy),
        (metrics.mutual_information, uncertainty.mutual_information),
    ]
    counts: dict[str, int] = {}
    if decisions is not None:
        observed += [
            (metrics.typicality, uncertainty.typicality),
            (metrics.set_size, decisions.sets.sum(axis=1)),
        ]
        reasons = decisions.reasons()
        counts = {reason: reasons.count(reason) for reason in ABSTENTION_REASONS}
    # Deferred updates run together, so those of many large requests would delay other requests.
    if len(uncertainty.labels) > _MAX_DEFERRED_IMAGES:
        metrics.observe_uncertainty(model.name, model.version, observed, counts)
    else:
        metrics.deferred.defer(
            metrics.observe_uncertainty, model.name, model.version, observed, counts
        )
