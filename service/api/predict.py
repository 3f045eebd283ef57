"""POST /predict and POST /uncertainty."""

from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.uncertainty.calibration import Decisions
from model.uncertainty.summary import Uncertainty
from service.api import answers, schemas
from service.api.routes import NamedRoute, request_id, rows_response
from service.api.sampling_options import sampling
from service.codecs.image_bodies import FORM_TYPE, JSON_TYPE
from service.errors import UncertaintyDisabledError
from service.observability.metrics import Metrics
from service.registry.repository import Repository
from service.sandbox.image_reader import IMAGE_TYPES, ImageReader
from service.settings import ServiceSettings

_FEW_IMAGES = 8
_FILES = {
    "type": "object",
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    },
    "required": ["file"],
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Instances"}},
            FORM_TYPE: {"schema": _FILES},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
        },
    }
}
_COLUMNS = 3
"""Figures of each class in an answer with dropout alive."""
_ERRORS = schemas.error_responses(400, 404, 408, 413, 415, 500, 503, 504)


class Predictions:
    """The endpoints."""

    def __init__(
        self,
        settings: ServiceSettings,
        repository: Repository,
        reader: ImageReader,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._reader = reader
        self._metrics = metrics

    def router(self) -> APIRouter:
        """Build both routes, or the first alone where uncertainty is switched off."""
        routes = APIRouter(tags=["predictions"])
        routes.post(
            "/predict",
            summary="Classify images",
            response_model=schemas.Predictions,
            responses=_ERRORS,
            openapi_extra=_BODY,
        )(self.predict)
        if self._settings.uncertainty:
            routes.post(
                "/uncertainty",
                summary="Classify images and say how sure each answer is",
                response_model=schemas.UncertainPredictions,
                responses=_ERRORS,
                openapi_extra=_BODY,
            )(self.uncertainty)
        else:
            routes.post("/uncertainty", include_in_schema=False)(self.disabled)
        return routes

    def express(self) -> list[NamedRoute]:
        """Build the routes of requests without query parameters."""

        async def predict(request: Request) -> Response:
            return await self.predict(request, schemas.ModelQuery())

        async def uncertainty(request: Request) -> Response:
            return await self.uncertainty(request, schemas.UncertaintyQuery())

        routes = [NamedRoute("/predict", predict, methods=["POST"])]
        if self._settings.uncertainty:
            routes.append(NamedRoute("/uncertainty", uncertainty, methods=["POST"]))
        return routes

    async def predict(
        self, request: Request, query: Annotated[schemas.ModelQuery, Query()]
    ) -> Response:
        """Answer deterministically."""
        served = self._repository.get(query.model, query.version, request_id(request))
        manifest = served.bundle.manifest
        with served, served.batcher.statistics.request() as timing:
            images = await self._reader.read(request, manifest.input)
            timing.has_read(len(images))
            prediction = await served.batcher.predict(images)
            timing.has_answered()
            content = {"model": manifest.name, "version": served.version}
            rows = partial(answers.plain, prediction, manifest.class_names)
            return await rows_response(content, rows, len(images) * len(manifest.class_names))

    async def uncertainty(
        self, request: Request, query: Annotated[schemas.UncertaintyQuery, Query()]
    ) -> Response:
        """Answer with dropout alive."""
        served = self._repository.get(query.model, query.version, request_id(request))
        how = sampling(query, self._settings)
        manifest = served.bundle.manifest
        with served, served.batcher.sampled_statistics.request() as timing:
            images = await self._reader.read(request, manifest.input)
            timing.has_read(len(images))
            answer = await served.batcher.uncertainty(images, how)
            timing.has_answered()
            decisions = None
            if served.calibrated is not None:
                decisions = served.calibrated.decide(
                    answer, query.coverage, query.sets, query.max_risk
                )
            _observe(answer, decisions, self._metrics, manifest.name)
            content = {
                "model": manifest.name,
                "version": served.version,
                "method": query.method,
                **answers.asked(how, decisions),
            }
            rows = partial(answers.uncertain, answer, manifest.class_names, decisions, how)
            count = _COLUMNS * len(images) * len(manifest.class_names)
            return await rows_response(content, rows, count)

    async def disabled(self, request: Request) -> Response:
        """Say that it is."""
        raise UncertaintyDisabledError(
            "POST /uncertainty is switched off on this server; use /predict, or start it without "
            "--no-uncertainty."
        )


def _observe(
    answer: Uncertainty, decisions: Decisions | None, metrics: Metrics, model: str
) -> None:
    observed = [
        (metrics.predictive_entropy, answer.predictive_entropy),
        (metrics.mutual_information, answer.mutual_information),
    ]
    abstentions = 0
    if decisions is not None:
        observed += [
            (metrics.typicality, answer.typicality),
            (metrics.set_size, decisions.sets.sum(axis=1)),
        ]
        abstentions = int(np.count_nonzero(decisions.abstain))
    if len(answer.labels) > _FEW_IMAGES:  # of many such requests the sum would hold up others
        metrics.uncertain(model, observed, abstentions)
    else:
        metrics.tally.later(metrics.uncertain, model, observed, abstentions)
